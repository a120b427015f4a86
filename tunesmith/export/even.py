"""The same LoRA for servers that read one rank and one alpha for all layers, or want an update in every block: each product is kept, only
its two factors are laid out anew.

    A' = [A; 0]  [R, in]        B' = [B·s/S, 0]  [out, R]        S·B'·A' = s·B·A       and A' = 0, B' = 0 where a block had none
"""

from typing import Any

import torch
from torch import nn

from tunesmith.methods.lora import LoRA
from tunesmith.methods.tuning import Tuning


def rank_for(rank: int, ranks: tuple[int, ...]) -> int:
    """The least of `ranks` that holds `rank`. Raises LookupError where none does."""
    found = next((each for each in ranks if each >= rank), None)
    if found is None:
        raise LookupError(rank)
    return found


@torch.no_grad()
def even(tuning: Tuning, model: Any, rank: int | None = None, everywhere: bool = False) -> Tuning:
    """LoRAs of one rank (the largest there is, where `rank` is None) and one scale; PiSSA as the LoRA that it is served as.

    `everywhere`: a layer that is tuned in one block has an update in all of them. `model` may be a skeleton.
    """
    own: dict[str, Any] = tuning.adapter
    modules: dict[str, Any] = {path: module.as_lora() if hasattr(module, "as_lora") else module for path, module in own.items()}
    widest = max(module.A.shape[0] for module in modules.values()) if rank is None else rank
    scale = max(module.scale for module in modules.values())
    paths = [path for path, _ in model.named_modules() if path in modules or (everywhere and _inner(path) in {_inner(p) for p in modules})]
    laid: dict[str, nn.Module] = {}
    for path in paths:
        like = modules.get(path) or next(module for other, module in modules.items() if _inner(other) == _inner(path))
        laid[path] = made = LoRA(like.A.shape[1], like.B.shape[0], widest, scale, 0.0)
        made.A.zero_()
        made.B.zero_()
        if path in modules:
            count = like.A.shape[0]
            made.A[:count] = like.A
            made.B[:, :count] = like.B * (like.scale / scale)
    return Tuning(laid, {f"{path}.{name}": p for path, module in laid.items() for name, p in module.named_parameters()})


def _inner(path: str) -> str:
    """A layer's path inside its block; the whole path outside of blocks."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return path if at is None else ".".join(parts[at + 1 :])
