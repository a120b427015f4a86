"""Folding an adapter into the weights of its base, shard by shard.

Arithmetic in fp32; the source checkpoint's own tensor names, dtypes, tied tensors and files are kept, since what a server
loads is that checkpoint with other numbers in it. Peak memory is one shard and one matrix.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.export.folder import right_index, untie
from tunesmith.methods.parts import extras
from tunesmith.models.folder import PICKLES
from tunesmith.models.matrix import INDEX, name_in, tensor_files
from tunesmith.models.nf4 import is_transposed

# Not copied: the same weights in other formats would stay unmerged beside the merged ones.
WEIGHTS = {".safetensors", *PICKLES, ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".tflite"}


@dataclass(frozen=True)
class Merged:
    """What was written: tensors that changed, and all of them."""

    folder: Path
    changed: int
    tensors: int


@dataclass(frozen=True)
class Folding:
    """Which tensors of a checkpoint change, and how. `found`: the checkpoint's name of a matrix -> path in the model."""

    source: Path
    files: Mapping[str, Path]  # every tensor's file
    modules: Mapping[str, Any]  # path -> module with folded(weight [out, in])
    found: Mapping[str, str]
    beside: Mapping[str, Tensor]  # biases of layers that were trained whole, by the checkpoint's names
    transposed: Callable[[str], bool]
    parted: Mapping[str, str]  # head -> embedding, where what was one matrix becomes two: the head's is made of the embedding's

    def of(self, key: str, tensor: Tensor) -> Tensor:
        """The tensor that stands under a name afterwards: the same one where nothing changes."""
        if key in self.found:
            path = self.found[key]
            return folded(tensor, self.modules[path], self.transposed(path))
        return self.beside[key].to("cpu", tensor.dtype) if key in self.beside else tensor

    def changes(self) -> Iterator[tuple[str, str, Tensor]]:
        """(path, "weight" or the name of what stands beside it, its tensor afterwards) of all that changes, one at a time."""
        names = {key.rpartition(".")[0]: path for key, path in self.found.items()}
        for key in [*self.found, *self.beside]:
            stem, _, name = key.rpartition(".")
            with safe_open(self.files[key], framework="pt") as content:
                yield names[stem], name, self.of(key, content.get_tensor(key))
        for head, embedding in self.parted.items():
            yield head, "weight", self.head_of(head, embedding)

    def head_of(self, head: str, embedding: str) -> Tensor:
        """The matrix of a head that is the embedding's no more."""
        key = self.name_of(embedding)
        with safe_open(self.files[key], framework="pt") as content:
            tensor: Tensor = content.get_tensor(key)
        return folded(tensor, self.modules[head], False) if head in self.modules else tensor

    def name_of(self, embedding: str) -> str:
        return next(key for key in self.files if key == f"{embedding}.weight" or f"{embedding}.weight".endswith(f".{key}"))


def folding(
    source: Path,
    modules: Mapping[str, Any],
    transposed: Callable[[str], bool],
    prefix: str = "",
    parted: Mapping[str, str] | None = None,
) -> Folding:
    """What folding `modules` ({path: module with folded(weight)}) into `source`'s checkpoint changes.

    `transposed(path)` says where the checkpoint keeps [in, out]; `prefix` is the base model's prefix, which a checkpoint may lack.
    Raises UserError with every path that has no matrix in the checkpoint.
    """
    names, parted = tensor_files(source), dict(parted or {})
    wanted: dict[str, Any] = {}
    found: dict[str, str] = {}
    for path, module in modules.items():
        key = name_in(names, path, prefix)
        if (followed := getattr(module, "follows", None)) is not None:
            if key is None:
                continue  # a tied head is folded where the embedding is
            module = modules[followed]  # some checkpoints hold the one matrix under both names
        wanted[path] = module
        if key is not None and path not in parted:
            found[key] = path
    beside: dict[str, Tensor] = {}
    for key, path in found.items():
        vectors = wanted[path].vectors() if hasattr(wanted[path], "vectors") else {}
        beside |= {key.removesuffix("weight") + name: tensor for name, tensor in vectors.items()}
    missing = [path for path in wanted if path not in found.values() and path not in parted]
    if missing:
        raise UserError(f"{source}: its checkpoint has no matrix of its own for", *[f"  {path}" for path in missing[:20]])
    return Folding(source, names, wanted, found, beside, transposed, parted)


def fold(source: Path, target: Path, modules: dict[str, Any], transposed: Callable[[str], bool], prefix: str = "") -> Merged:
    """Write `source`'s model with each module folded into its matrix; see `folding`. `target` is not written where that raises."""
    return write(folding(source, modules, transposed, prefix), target)


def write(change: Folding, target: Path) -> Merged:
    """Write the checkpoint with what changes in it, and all that stands beside it but weights in other formats."""
    target.mkdir(parents=True, exist_ok=True)
    for path in change.source.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS:
            shutil.copyfile(path, target / path.name)
    heads = {f"{head}.weight": (head, embedding) for head, embedding in change.parted.items()}
    last = {change.files[change.name_of(embedding)]: name for name, (_, embedding) in heads.items()}
    for file in sorted(set(change.files.values())):
        tensors: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata()
            for key in content.keys():  # noqa: SIM118  not a dictionary
                if key not in heads:
                    tensors[key] = change.of(key, content.get_tensor(key)).contiguous()
        if file in last:
            tensors[last[file]] = change.head_of(*heads[last[file]]).contiguous()
        save_file(tensors, target / file.name, metadata=metadata)
    if heads:
        _name_heads(target, {name: file.name for file, name in last.items()})
    right_index(target)
    return Merged(target, len(change.found) + len(change.beside) + len(heads), len(change.files.keys() | heads.keys()))


def _name_heads(target: Path, heads: dict[str, str]) -> None:
    untie(target)
    if (target / INDEX).is_file():
        index = json.loads((target / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] |= heads
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def folded(weight: Tensor, module: Any, transposed: bool) -> Tensor:
    """The folded matrix in the weight's own orientation and dtype, on the CPU; the sum is made in fp32, where the module's tensors are."""
    own = next(iter(module.parameters()), None) if hasattr(module, "parameters") else None
    device = weight.device if own is None else own.device
    weight_OI = (weight.T if transposed else weight).to(device)
    result_OI = module.folded(weight_OI)
    return (result_OI.T if transposed else result_OI).to("cpu", weight.dtype)


def orientation(bare: Any) -> Callable[[str], bool]:
    """Where a checkpoint keeps [in, out], by a skeleton: over NF4 the model's own Conv1D layers have been exchanged."""
    return lambda path: is_transposed(bare.get_submodule(path))


def parted(bare: Any, modules: Mapping[str, Any], headed: bool) -> dict[str, str]:
    """{head: embedding} where training made two matrices of one; `headed`: a task's head has taken the place of the head.

    `bare` is a skeleton of the base.
    """
    if headed or not extras.tied(bare):
        return {}
    embedding, head = extras.ends(bare)
    follows = head in modules and hasattr(modules[head], "follows")
    return {head: embedding} if {embedding, head} & modules.keys() and not follows else {}
