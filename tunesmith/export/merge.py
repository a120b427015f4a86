"""Folding an adapter into the weights of its base, shard by shard.

Arithmetic in fp32; the source checkpoint's own tensor names, dtypes, tied tensors and files are kept, since what a server
loads is that checkpoint with other numbers in it. Peak memory is one shard and one matrix.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.models.folder import PICKLES
from tunesmith.models.matrix import name_in, tensor_files

# Not copied: the same weights in other formats would stay unmerged beside the merged ones.
WEIGHTS = {".safetensors", *PICKLES, ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".tflite"}


@dataclass(frozen=True)
class Merged:
    """What was written: tensors that changed, and all of them."""

    folder: Path
    changed: int
    tensors: int


def fold(source: Path, target: Path, modules: dict[str, Any], transposed: Callable[[str], bool], prefix: str = "") -> Merged:
    """Write `source`'s model with each module of `modules` ({path: module with folded(weight)}) folded into its matrix.

    `transposed(path)` says where the checkpoint keeps [in, out]; `prefix` is the base model's prefix, which a checkpoint may
    lack. Raises UserError with every path that has no matrix in the checkpoint; `target` is then not written.
    """
    modules = {path: module for path, module in modules.items() if not hasattr(module, "follows")}  # a tied head is folded elsewhere
    names = tensor_files(source)
    files = sorted(set(names.values()))
    found = {key: path for path in modules if (key := name_in(names, path, prefix)) is not None}
    beside: dict[str, Tensor] = {}  # biases of layers that were trained whole
    for key, place in found.items():
        vectors = modules[place].vectors() if hasattr(modules[place], "vectors") else {}
        beside |= {key.removesuffix("weight") + name: tensor for name, tensor in vectors.items()}
    missing = [path for path in modules if path not in found.values()]
    if missing:
        raise UserError(f"{source}: its checkpoint has no matrix of its own for", *[f"  {path}" for path in missing[:20]])
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS:
            shutil.copyfile(path, target / path.name)
    for file in files:
        tensors: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata()
            for key in content.keys():  # noqa: SIM118  not a dictionary
                tensor = content.get_tensor(key)
                if key in found:
                    tensor = folded(tensor, modules[found[key]], transposed(found[key]))
                elif key in beside:
                    tensor = beside[key].to("cpu", tensor.dtype)
                tensors[key] = tensor.contiguous()
        save_file(tensors, target / file.name, metadata=metadata)
    return Merged(target, len(found) + len(beside), len(names))


@torch.no_grad()
def folded(weight: Tensor, module: Any, transposed: bool) -> Tensor:
    """The folded matrix in the weight's own orientation and dtype; the sum is made in fp32."""
    weight_OI = weight.T if transposed else weight
    result_OI = module.folded(weight_OI)
    return (result_OI.T if transposed else result_OI).to(weight.dtype)
