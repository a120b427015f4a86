"""Every tensor of a GGUF file, planned from the names and shapes of a checkpoint alone, and made when it is its turn.

Shapes are torch's: [out, in]; O rows of a matrix, I its columns, H heads, D channels of a head.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.export.gguf.names import Family, name_of
from tunesmith.export.gguf.rope import rope_tensors
from tunesmith.models.matrix import tensor_files

PASSED_OVER = ("rotary_emb.inv_freq", "masked_bias", "attn.bias")  # computed anew by everybody
FACTORS = "rope_"  # names of tensors that are made, not read


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the file. `parts` are the checkpoint's tensors that it is made of: one, or an expert stack's in order."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    made: Tensor | None = None  # a tensor that no checkpoint holds

    @property
    def columns(self) -> int:
        """Numbers in a row: what has to be a multiple of a type's block."""
        return self.shape[-1]


def plan(folder: Path, config: Any, family: Family, head_size: int) -> list[Planned]:
    """In the order of the checkpoint's files. Raises UserError with every tensor that has no place in the file, or no size."""
    shapes = _shapes(folder)
    tied = bool(config.tie_word_embeddings)
    found: dict[str, dict[int | None, str]] = {}
    problems = []
    for name in shapes:
        if name.endswith(PASSED_OVER) or (tied and name == "lm_head.weight"):
            continue
        target, expert = name_of(name, family)
        if not target:
            problems.append(f"{name}: llama.cpp's {family.architecture} has no such tensor")
        elif expert in found.setdefault(target, {}):
            problems.append(f"{name}: a second tensor for {target}")
        else:
            found[target][expert] = name
    if problems:
        raise UserError(*[f"{folder}: {problem}" for problem in problems[:20]])
    planned = [_planned(target, parts, shapes) for target, parts in found.items()]
    for name, factors in rope_tensors(config, head_size).items():
        planned.append(Planned(name, factors.shape, (), torch.from_numpy(factors)))
    return planned


def _planned(target: str, parts: dict[int | None, str], shapes: dict[str, tuple[int, ...]]) -> Planned:
    if None in parts:
        return Planned(target, shapes[parts[None]], (parts[None],))
    ordered = tuple(name for _, name in sorted(parts.items(), key=lambda item: item[0] or 0))
    return Planned(target, (len(ordered), *shapes[ordered[0]]), ordered)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the checkpoint, file by file; nothing else is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(tensor_files(folder).values())):
        with safe_open(file, framework="pt") as content:
            shapes |= {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    return shapes


def values(planned: list[Planned], folder: Path, change: Callable[[str, Tensor], Tensor]) -> Iterator[tuple[Planned, Iterator[Tensor]]]:
    """Each tensor with its parts in fp32, changed as llama.cpp wants them; one part is in memory at a time."""
    files = tensor_files(folder)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(set(files.values()))}

        def parts(each: Planned) -> Iterator[Tensor]:
            if each.made is not None:
                yield each.made
            for name in each.parts:
                yield change(each.name, opened[files[name]].get_tensor(name).float()).contiguous()

        for each in planned:
            yield each, parts(each)


def changes(config: Any, family: Family) -> Callable[[str, Tensor], Tensor]:
    """What is done to a tensor of this name on its way."""

    def change(name: str, tensor: Tensor) -> Tensor:
        if family.turned and ".attn_q." in name:
            return turned(tensor, config.num_attention_heads)
        if family.turned and ".attn_k." in name:
            return turned(tensor, config.num_key_value_heads)
        if family.offset and name.endswith("norm.weight"):
            return tensor + 1.0
        return tensor

    return change


def turned(tensor_O: Tensor, heads: int) -> Tensor:
    """Rows [O, ...] in llama.cpp's order: a head's channels i and i + D/2, which rotate together, stand side by side."""
    halves = tensor_O.reshape(heads, 2, tensor_O.shape[0] // heads // 2, *tensor_O.shape[1:])
    return halves.transpose(1, 2).reshape(tensor_O.shape)
