"""One matrix of a checkpoint, whatever is in memory: what a method takes apart may be NF4 there."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.models.nf4 import is_transposed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def matrix(folder: Path, path: str, model: Any) -> Tensor:
    """The weight of the linear layer at `path` as [out, in] in fp32. Raises UserError where the checkpoint has none of its own."""
    files = tensor_files(folder)
    name = name_in(files, path, model.base_model_prefix)
    if name is None:
        raise UserError(f"{folder}: its checkpoint has no matrix of its own for {path}, which this method begins from")
    with safe_open(files[name], framework="pt") as content:
        weight: Tensor = content.get_tensor(name).to(torch.float32)
    return weight.T.contiguous() if is_transposed(model.get_submodule(path)) else weight


def tensor_files(folder: Path) -> dict[str, Path]:
    """Every tensor's file. Raises UserError where the folder holds no safetensors."""
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    if not (folder / SINGLE).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}, so there are no matrices to read")
    with safe_open(folder / SINGLE, framework="pt") as content:
        return dict.fromkeys(content.keys(), folder / SINGLE)


def name_in(names: dict[str, Path], path: str, prefix: str) -> str | None:
    """The checkpoint's name for the matrix at a path; some checkpoints leave the base model's prefix out."""
    for candidate in (f"{path}.weight", f"{path}.weight".removeprefix(f"{prefix}.") if prefix else ""):
        if candidate in names:
            return candidate
    return None
