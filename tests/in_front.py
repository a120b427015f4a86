"""What tests put in front of a document: copies of real tokens as virtual ones, and the model's own keys and values as a prefix.
Either must do what the real tokens do."""

from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.methods.prompt import VirtualTokens
from tunesmith.models import slots
from tunesmith.models.head import decoder_of


class Kept:
    """A prefix that is what one layer keeps for real tokens."""

    def __init__(self, layer: int, k_KPE: torch.Tensor, v_KPE: torch.Tensor):
        self.layer, self.prefix_tokens, self.parts = layer, k_KPE.shape[1], (k_KPE, v_KPE)

    def keys_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parts

    def attach(self, layer: Any) -> None: ...

    def detach(self, layer: Any) -> None: ...


def place_copies(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Virtual tokens that are what the embedding gives for real ones."""
    embedding = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embedding)
    module = VirtualTokens(len(ids), embedding.weight.shape[1])
    with torch.no_grad():
        module.table.copy_(embedding(ids))
    slots.place(model, {path: module})
    return {path: module}


def place_kept(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """A prefix of the model's own keys and values for real tokens, at the paths of its blocks."""
    cache: Any = DynamicCache()  # not told of windows: it keeps every position
    with torch.no_grad():
        decoder_of(model)(input_ids=ids[None], past_key_values=cache, use_cache=True)
    kept = {
        path: Kept(i, cache.layers[i].keys[0], cache.layers[i].values[0])  # type: ignore[arg-type, index]
        for i, (path, _) in enumerate(slots.blocks(model))
    }
    slots.place(model, kept)  # type: ignore[arg-type]
    return kept
