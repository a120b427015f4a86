"""What an adapter puts in front of a document, for whoever feeds the class itself: placeholders among the ids, a cache that begins
with the prefix's keys and values.

Shapes: B documents, T tokens, V virtual tokens, P positions of the prefix, K key/value heads, E head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.models import slots


def cache_of(model: Any, documents: int) -> DynamicCache | None:
    """A cache that holds the prefix for so many documents, or None where there is none."""
    layers = slots.prefix(model)
    if not layers:
        return None
    cache = DynamicCache(config=model.config)
    for layer, module in sorted(layers, key=lambda item: item[0]):
        k_KPE, v_KPE = (part.to(model.dtype) for part in module.keys_values())
        cache.update(k_KPE.expand(documents, -1, -1, -1), v_KPE.expand(documents, -1, -1, -1), layer)
    return cache


def is_windowed(model: Any) -> bool:
    """Whether some layers see the last tokens only."""
    config = model.config.get_text_config(decoder=True)
    return getattr(config, "sliding_window", None) is not None or getattr(config, "attention_chunk_size", None) is not None


def logits(model: Any, ids_BT: Tensor, keep_N: Tensor | None = None) -> Tensor:
    """The class's logits of every real token, [B, T, vocabulary], or of the positions `keep_N` alone, with what stands in front.

    The documents are equally long; the class's own attention is in place.
    """
    batch = ids_BT.shape[0]
    virtual_V = torch.tensor(slots.virtual_ids(model), dtype=ids_BT.dtype, device=ids_BT.device)
    ids_BT = torch.cat([virtual_V.expand(batch, -1), ids_BT], dim=1)
    keep: Any = slice(len(virtual_V), None)
    arguments: dict[str, Any] = {"use_cache": False}
    if keep_N is not None:
        arguments["logits_to_keep"], keep = keep_N + len(virtual_V), slice(None)
    if (cache := cache_of(model, batch)) is not None:
        first = slots.first_position(model)
        arguments |= {"past_key_values": cache, "position_ids": torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)[None]}
    found: Tensor = model(input_ids=ids_BT, **arguments).logits
    return found[:, keep]
