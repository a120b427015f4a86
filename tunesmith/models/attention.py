"""Attention over a packed row: every document attends to itself alone, and no T×T mask is ever made.

Registered with `transformers` under the name `tunesmith`, so that the classes stay unmodified. A packed row is one batch row
of T tokens; where its documents begin comes as the standard keyword `cu_seq_lens_q` (D+1 offsets, the first 0, the last T),
which every class that follows the attention interface hands down. Shapes: B=1, H query heads, K key/value heads, T tokens
of the row, P positions of a prefix, E head size. Where an adapter has put keys and values at the layer, they stand in front of
every document (`models/prefix_attention.py`).

An argument that we do not know and that is not None is an error, never ignored: a class that asks for something else than
causal attention, with a window, a soft-cap or sinks, is caught here or by the proof at the start of a run.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.models import prefix_attention
from tunesmith.models.chunked_attention import chunked

NAME = "tunesmith"

# Arguments that classes hand to every attention function and that do not change what causal self-attention computes.
_HARMLESS = {
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "cache_position", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "is_causal", "layer_idx", "num_items_in_batch", "cache_params", "position_embeddings",
}  # fmt: skip


class UnknownArgument(ValueError):
    """A class asks for an attention that is not this one."""


def packed_attention(
    module: torch.nn.Module,
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[B,H,T,E] queries and [B,K,T,E] keys and values to [B,T,H,E] outputs.

    Raises UnknownArgument for an argument that would change the result and that we do not serve.
    """
    unknown = sorted(name for name, value in others.items() if name not in _HARMLESS and value is not None)
    if unknown:
        raise UnknownArgument(f"attention asks for {', '.join(unknown)}")
    if dropout:
        raise UnknownArgument("attention asks for dropout")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnknownArgument("attention is not causal")
    if attention_mask is not None:
        raise UnknownArgument("attention asks for a mask of its own")
    if cu_seq_lens_q is None:
        raise UnknownArgument("the class does not hand document starts down to its attention")
    if q_BHTE.shape[2] != k_BKTE.shape[2]:
        raise UnknownArgument("keys and queries are not as many")
    scale = scaling if scaling is not None else q_BHTE.shape[-1] ** -0.5
    starts = cu_seq_lens_q.tolist()
    if (prefix := prefix_attention.attached(module)) is not None:
        keys_KPE, values_KPE = (part.to(q_BHTE.dtype) for part in prefix.keys_values())
        out_HTE = prefix_attention.behind_prefix(
            q_BHTE[0], k_BKTE[0], v_BKTE[0], keys_KPE, values_KPE, starts, scale,
            window=sliding_window, softcap=softcap, sinks_H=s_aux,
        )  # fmt: skip
        return out_HTE.transpose(0, 1)[None].contiguous(), None
    out_BTHE = []
    for begin, end in pairwise(starts):
        if begin == end:
            continue
        q, k, v = q_BHTE[:, :, begin:end], k_BKTE[:, :, begin:end], v_BKTE[:, :, begin:end]
        window = sliding_window if sliding_window is not None and sliding_window < end - begin else None
        if window is None and softcap is None and s_aux is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
        else:
            out = chunked(q, k, v, scale, window, softcap, s_aux)
        out_BTHE.append(out.transpose(1, 2))
    return torch.cat(out_BTHE, dim=1) if len(out_BTHE) > 1 else out_BTHE[0].contiguous(), None


AttentionInterface.register(NAME, packed_attention)
