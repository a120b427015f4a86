"""A GGUF file becomes a folder that transformers 4 and 5 open: real weights, config, tokenizer, chat template.

transformers reads the file (it knows each architecture's names and permutations); this file sees to what it would pass
over in silence. transformers 5.23 keeps a GGUF packed unless told to dequantise. It reads no rope scaling and drops
`rope_freqs`. It splits text by GPT-2's rule where it does not know the file's own rule. And version 4 reads `rope_theta`
and `torch_dtype`, where version 5 writes `rope_parameters` and `dtype`: without the old names version 4 computes with a
rope base of 10,000 and says nothing.
"""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import UserError
from tunesmith.models.gguf_header import Header, read_header

if TYPE_CHECKING:
    import torch

# llama.cpp's names for ways to cut text before byte-pair merges (`tokenizer.ggml.pre`), where transformers has no rule of
# its own. The first are GPT-2's rule; the second cut every digit off first, then follow GPT-2's rule.
GPT2_SPLITS = {"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling", "phi-2", "modern-bert", "exaone4"}
DIGIT_SPLITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
INSTEAD = "take the model's safetensors folder (or hub id) instead of the GGUF"


def convert(path: Path, folder: Path) -> None:
    """Write the model in GGUF file `path` into the new folder `folder`.

    Files of floats keep their dtype; quantised ones become bfloat16. Peak memory is the weights in that dtype once, plus
    the largest tensor twice in fp32. Raises UserError where the file holds something that would not be carried over.
    """
    try:
        header = read_header(path)
    except ValueError as error:
        raise UserError(f"{path}: not a usable GGUF file: {error}; download it again") from None
    if int(header.metadata.get("split.count", 0)) > 1:
        raise UserError(f"{path}: one part of a split GGUF; join them first: llama-gguf-split --merge {path.name} whole.gguf")
    rope = _rope_scaling(path, header)
    tokenizer = _tokenizer(path, header)
    folder.mkdir(parents=True)
    with _without_bars():
        _write_weights(path, header, folder)
    tokenizer.save_pretrained(folder)
    _mend_config(folder / "config.json", rope)
    _mend_tokenizer_config(folder)
    _write_generation_config(folder, header.metadata)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Who asks for a conversion is told in a sentence that it takes a while; transformers' bars print hundreds of lines in a log."""
    from transformers import modeling_gguf_pytorch_utils as reading

    from tunesmith.models.load import quiet

    own: Any = reading.tqdm
    reading.tqdm = partial(own, disable=True)
    try:
        with quiet():
            yield
    finally:
        reading.tqdm = own


def config_for_both_versions(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 with version 4's names for rope and dtype beside the new ones."""
    result = dict(config)
    if dtype := config.get("dtype") or config.get("torch_dtype"):
        result |= {"dtype": dtype, "torch_dtype": dtype}
    rope = config.get("rope_parameters") or {}
    layers = rope.get("full_attention")
    if isinstance(layers, dict):  # one rope per kind of layer, as Gemma 3 has
        result["rope_theta"] = layers["rope_theta"]
        if sliding := rope.get("sliding_attention"):
            result["rope_local_base_freq"] = sliding["rope_theta"]
        rope = layers
    elif "rope_theta" in rope:
        result["rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        result["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default" and not isinstance(layers, dict):
        # version 5 takes `rope_scaling` over `rope_parameters` where both stand: they must say the same
        result["rope_scaling"] = dict(rope)
    return result


def _write_weights(path: Path, header: Header, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    architecture = header.metadata.get("general.architecture")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=AutoConfig.from_pretrained(path.parent, gguf_file=path.name),
            quantization_config=GgufConfig(dequantize=True),
            dtype=_dtype(header),
            output_loading_info=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{path}: transformers cannot open a GGUF of architecture {architecture!r}: {error}", INSTEAD) from None
    model, loading = loaded
    problems = [f"{path}: no tensor for {name}" for name in sorted(loading["missing_keys"])]
    problems += [f"{path}: {name} has another shape than the model's" for name in sorted(map(str, loading["mismatched_keys"]))]
    skip = ("rope_", "output.weight") if model.config.tie_word_embeddings else ("rope_",)
    in_file = sum(math.prod(tensor.shape) for tensor in header.tensors if not tensor.name.startswith(skip))
    in_model = sum(parameter.numel() for parameter in model.parameters())  # tied tensors once
    if in_file != in_model and not problems:
        problems = [f"{path}: holds {in_file:,} weights, the {type(model).__name__} made of it {in_model:,}: part of it would be lost"]
    if problems:
        raise UserError(*problems, INSTEAD)
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder, max_shard_size="2GB")


def _dtype(header: Header) -> "torch.dtype":
    import torch

    kinds = {tensor.kind for tensor in header.tensors}
    if kinds == {"F32"}:
        return torch.float32
    return torch.float16 if kinds <= {"F32", "F16"} else torch.bfloat16


def _tokenizer(path: Path, header: Header) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    split = header.metadata.get("tokenizer.ggml.pre", "default")
    byte_level = header.metadata.get("tokenizer.ggml.model") == "gpt2"
    if byte_level and split not in GPT2_SPLITS | DIGIT_SPLITS | set(GGUF_PRE_TOKENIZER_SPLITS):
        raise UserError(
            f"{path}: its tokenizer cuts text by the rule {split!r} (tokenizer.ggml.pre), which is not known here; "
            "text would become other tokens than the model was trained on",
            INSTEAD,
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: its tokenizer cannot be read: {error}", INSTEAD) from None
    if byte_level and split in DIGIT_SPLITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    return tokenizer


def _rope_scaling(path: Path, header: Header) -> dict[str, Any] | None:
    """Rope parameters that transformers does not read from a GGUF: Llama 3's, found from the factors in the file and
    proved by recomputing those factors. None where the rope is plain. Raises UserError for any other scaling."""
    architecture = header.metadata.get("general.architecture")
    kind = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    tables = {tensor.name: tensor for tensor in header.tensors if tensor.name.startswith("rope_")}
    lost = [f"rope.scaling.type {kind}"] * (kind not in ("none", "")) + sorted(set(tables) - {"rope_freqs.weight"})
    if lost and architecture != "gpt-oss":  # the one architecture whose scaling transformers reads
        raise UserError(f"{path}: {', '.join(lost)} would be lost by the conversion", INSTEAD)
    if not tables:
        return None
    table = tables["rope_freqs.weight"]
    with open(path, "rb") as file:
        file.seek(table.offset)
        factors = struct.unpack(f"<{math.prod(table.shape)}f", file.read(4 * math.prod(table.shape)))
    return llama3_rope(path, list(factors), float(header.metadata.get(f"{architecture}.rope.freq_base", 10000.0)))


def llama3_rope(path: Path, factors: list[float], theta: float, original: int = 8192) -> dict[str, Any]:
    """Llama 3's rope parameters whose per-frequency factors are `factors` (head_dim / 2 of them); UserError if there are none."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }
    for i, found in enumerate(factors):
        wavelength = 2 * math.pi * theta ** (2 * i / (2 * len(factors)))
        smooth = (original / wavelength - 1.0) / (4.0 - 1.0)
        expected = 1.0 if smooth > 1 else max(factors) if smooth < 0 else 1 / ((1 - smooth) / max(factors) + smooth)
        if not math.isclose(found, expected, rel_tol=1e-3):
            raise UserError(
                f"{path}: rope_freqs.weight is not Llama 3's scaling (factor {i} is {found:g}, not {expected:g}); it would be lost", INSTEAD
            )
    return rope


def _mend_config(path: Path, rope: dict[str, Any] | None) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    for left_over in ("_model_name_or_path", "unk_token_id", "quantization_config"):
        config.pop(left_over, None)
    if rope:
        config["rope_parameters"] = rope
    _write_json(path, config_for_both_versions(_shortest_floats(config)))


def _mend_tokenizer_config(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for left_over in ("backend", "is_local", "local_files_only", "gguf_file"):
        values.pop(left_over, None)
    # tokenizer.json holds everything, and this class, which both versions know, reads nothing else
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    values["clean_up_tokenization_spaces"] = False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if longest := config.get("max_position_embeddings"):
        values["model_max_length"] = longest
    _write_json(path, values)


def _write_generation_config(folder: Path, metadata: dict[str, Any]) -> None:
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    stops = list(dict.fromkeys(i for i in ids if i is not None))
    values = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    _write_json(folder / "generation_config.json", {key: value for key, value in values.items() if value is not None})


def _shortest_floats(value: Any) -> Any:
    """A GGUF holds fp32: 9.999999747378752e-06 was written as 1e-05, and is the same fp32 number."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _shortest_floats(inner) for key, inner in value.items()}
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
