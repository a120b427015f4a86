"""What an adapter puts in front of a document, for whoever feeds the class itself: placeholders among the ids, a cache that begins
with the prefix's keys and values.

Shapes: B documents, T tokens, V virtual tokens, P positions of the prefix, K key/value heads, E head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.models import slots
from tunesmith.models.head import decoder_of


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
    arguments, virtual = _fed(model, ids_BT)
    keep: Any = slice(virtual, None)
    if keep_N is not None:
        arguments["logits_to_keep"], keep = keep_N + virtual, slice(None)
    found: Tensor = model(**arguments).logits
    return found[:, keep]


def hidden(model: Any, ids_BT: Tensor) -> Tensor:
    """The decoder's last hidden states of every real token, [B, T, C], with what stands in front.

    Shorter documents may be filled up behind their end: nothing there is seen from before. The class's own attention is in place.
    """
    arguments, virtual = _fed(model, ids_BT)
    found: Tensor = decoder_of(model)(**arguments).last_hidden_state
    return found[:, virtual:]


def _fed(model: Any, ids_BT: Tensor) -> tuple[dict[str, Any], int]:
    """(arguments for the class or its decoder, how many virtual tokens stand in front)."""
    virtual_V = torch.tensor(slots.virtual_ids(model), dtype=ids_BT.dtype, device=ids_BT.device)
    ids_BT = torch.cat([virtual_V.expand(ids_BT.shape[0], -1), ids_BT], dim=1)
    arguments: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
    if (cache := cache_of(model, ids_BT.shape[0])) is not None:
        first = slots.first_position(model)
        arguments |= {"past_key_values": cache, "position_ids": torch.arange(first, first + ids_BT.shape[1], device=ids_BT.device)[None]}
    return arguments, len(virtual_V)
