"""A model folder becomes one GGUF file: everything is planned from names and shapes first, then the weights pass through one by one.

Peak memory is one matrix in fp32 and as bytes, whatever the model's size; of a stack of experts, one expert and the stack's bytes.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from tunesmith.errors import UserError
from tunesmith.export.gguf import weights
from tunesmith.export.gguf.names import entries_of, family_of, head_size, notes_of
from tunesmith.export.gguf.quantise import KINDS, bytes_of, check_packing, packed, types
from tunesmith.export.gguf.vocabulary import vocabulary
from tunesmith.models import load as loading

Tell = Callable[[str], None]
TOLD_EVERY = 64  # tensors


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the file."""

    file: Path
    architecture: str
    kind: str
    tensors: int
    bytes: int
    types: dict[str, int]  # how many tensors have each type
    notes: tuple[str, ...] = ()  # what llama.cpp does otherwise, as sentences


def write_model(folder: Path, out: Path, kind: str, tell: Tell = lambda sentence: None) -> Written:
    """Write the safetensors model in `folder` as the file `out`, weights stored as `kind` of `KINDS` says.

    Raises UserError with everything that llama.cpp would not compute, or tokenise, as the model does; `out` is then not written.
    """
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no way to store a GGUF's weights; these are: {', '.join(KINDS)}")
    config = loading.load_config(folder)
    family = family_of(config)
    entries = entries_of(config, family)
    tokens = vocabulary(loading.load_tokenizer(folder), config.vocab_size, loading.stop_ids(folder, config), str(folder))
    planned = weights.plan(folder, config, family, head_size(config))
    chosen = types(planned, KINDS[kind], config.num_hidden_layers, int(entries.get("expert_count", 0)))
    check_packing(set(chosen.values()))
    with opened_aside(out, family.architecture) as writer:
        writer.add_type("model")
        writer.add_name(_name(folder, tokens.strips))
        writer.add_file_type(KINDS[kind].file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in entries.items():
            add(writer, f"{family.architecture}.{key}", value)
        for key, value in tokens.entries.items():
            add(writer, f"tokenizer.{key}", value)
        for each in planned:
            writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), bytes_of(each.shape, chosen[each.name]), chosen[each.name])
        _write_weights(writer, planned, folder, config, family, chosen, tell)
    counted = [chosen[each.name].name for each in planned]
    notes = (*tokens.notes, *notes_of(config))
    return Written(
        out,
        family.architecture,
        kind,
        len(planned),
        out.stat().st_size,
        {name: counted.count(name) for name in dict.fromkeys(counted)},
        notes,
    )


def _name(folder: Path, strips: bool) -> str:
    """The folder's; but llama.cpp treats blanks behind special tokens by whether a model's name holds phi-3 or phi3, so that it must
    hold it where the tokenizer takes them away, and must not where it does not."""
    name = folder.resolve().name
    if not strips:
        return re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)
    return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (Phi-3)"


def _write_weights(writer: Any, planned: list[weights.Planned], folder: Path, config: Any, family: Any, chosen: Any, tell: Tell) -> None:
    begin(writer)
    for number, (each, parts) in enumerate(weights.values(planned, folder, weights.changes(config, family))):
        if number % TOLD_EVERY == 0:
            tell(f"tensor {number + 1} of {len(planned)}")
        writer.write_tensor_data(_together(parts, chosen[each.name], each))


def _together(parts: Iterator[Any], kind: Type, each: weights.Planned) -> np.ndarray:
    """The bytes of a tensor; those of a stack are gathered expert by expert."""
    if len(each.parts) < 2:
        return packed(next(parts), kind, each.name)
    result = np.empty((len(each.parts), bytes_of(each.shape, kind) // len(each.parts)), dtype=np.uint8)
    for row, part in enumerate(parts):
        result[row] = packed(part, kind, each.parts[row])
    return result.reshape(-1)


@contextmanager
def opened_aside(out: Path, architecture: str) -> Iterator[Any]:
    """The format's own writer, into a file that has its name only when it is whole."""
    aside = out.with_name(out.name + ".partial")
    writer = gguf.GGUFWriter(aside, architecture)
    quiet = logging.getLogger("gguf.gguf_writer")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        yield writer
        writer.close()
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; free some room, or name another folder") from None
    finally:
        writer.close()
        quiet.setLevel(level)
        aside.unlink(missing_ok=True)


def begin(writer: Any) -> None:
    """Everything that stands before the weights."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def add(writer: Any, key: str, value: Any) -> None:
    """An entry of the type that llama.cpp expects: whole numbers are unsigned, lists are of one type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
