"""What training changed of a base, layer by layer, beside the base's original weights: what a LoRA can be fitted to, and what no
LoRA can hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tunesmith.export import nearest
from tunesmith.export.nearest import Change
from tunesmith.methods.parts import extras
from tunesmith.models import slots
from tunesmith.models.matrix import matrix, name_in, tensor_files
from tunesmith.tuned import Tuned

Found = tuple[list[Change], dict[str, float]]  # changes of layers, and trained tensors that no LoRA can hold with their ‖change‖/‖tensor‖
EXACT = 1e-6  # ‖change‖/‖tensor‖ up to which nothing was changed: rounding of fp32


@torch.no_grad()
def of_adapter(tuned: Tuned, base: Path, bare: Any, most: int, seed: int) -> Found:
    """Of an adapter whose modules fold, up to `most` directions a layer. `bare` is a skeleton of the base in folder `base`."""
    changes: list[Change] = []
    lost: dict[str, float] = {}
    adapter: dict[str, Any] = tuned.tuning.adapter
    for path, module in adapter.items():
        if hasattr(module, "A"):
            weight_OI = matrix(base, path, bare)
            norm = weight_OI.norm().item()
            if hasattr(module, "magnitude"):  # rows are scaled to lengths of their own: no product of thin factors
                weight_OI = weight_OI.to(module.A.device)
                changes.append(nearest.of_matrix(path, module.folded(weight_OI) - weight_OI, norm, most, seed))
            else:
                plain = module.as_lora() if hasattr(module, "as_lora") else module
                changes.append(nearest.of_product(path, plain.scale * plain.B, plain.A, norm, most))
        elif not hasattr(module, "follows"):
            lost |= _beside(path, module, base, bare)
    return [change for change in changes if _changed(change)], {name: size for name, size in lost.items() if size > EXACT}


def _beside(path: str, module: Any, base: Path, bare: Any) -> dict[str, float]:
    """Rows of an embedding or a head, and whole modules, that were trained beside the updates."""
    embedding, head = extras.ends(bare)
    source = embedding if path == head and extras.tied(bare) else path
    if hasattr(module, "ids"):
        rows_nC, own_nC = matrix(base, source, bare)[module.ids], module.trained()[0] if hasattr(module, "trained") else module.values
        return {f"{path} ({len(module.ids)} rows)": _apart(own_nC, rows_nC)}
    files, found = tensor_files(base), {}
    for name, tensor in module.named_parameters():
        key = next((key for key in _names(source, name, bare.base_model_prefix) if key in files), None)
        found[f"{path}.{name}"] = 1.0 if key is None else _apart(tensor, _read(files[key], key))
    return found


@torch.no_grad()
def of_model(tuned: Tuned, base: Path, bare: Any, most: int, seed: int) -> Found:
    """Of a whole model that was trained from `base` on, read from the two checkpoints a matrix at a time."""
    trained = tuned.located.folder
    ours, theirs = tensor_files(trained), tensor_files(base)
    layers = {path for path in (place.path for place in slots.linears(bare)) if name_in(theirs, path, bare.base_model_prefix)}
    held = {name_in(ours, path, bare.base_model_prefix) for path in layers}
    changes = []
    for path in (place.path for place in slots.linears(bare)):
        if path in layers:
            weight_OI = matrix(base, path, bare)
            norm = weight_OI.norm().item()
            change_OI = matrix(trained, path, bare).sub_(weight_OI).to(tuned.model.device)
            if change_OI.norm().item() > EXACT * norm:
                changes.append(nearest.of_matrix(path, change_OI, norm, most, seed))
    lost = {key: _apart(_read(ours[key], key), _read(theirs[key], key)) for key in _shared(ours, theirs) if key not in held}
    return changes, {name: size for name, size in lost.items() if size > EXACT}


def _shared(ours: dict[str, Path], theirs: dict[str, Path]) -> Iterator[str]:
    return (key for key in ours if key in theirs)


def _changed(change: Change) -> bool:
    return change.energy > (EXACT * change.weight) ** 2


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖, 1 where the shapes differ."""
    if ours.shape != theirs.shape:
        return 1.0
    change, size = (ours.cpu().double() - theirs.cpu().double()).norm().item(), theirs.double().norm().item()
    return change / size if size else float(change > 0)


def _names(path: str, name: str, prefix: str) -> list[str]:
    whole = f"{path}.{name}"
    return [whole, whole.removeprefix(f"{prefix}.") if prefix else whole]


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as content:
        tensor: Tensor = content.get_tensor(key)
    return tensor
