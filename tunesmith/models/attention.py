"""Attention over a packed row: every document attends to itself alone, and no T×T mask is ever made.

Registered with `transformers` under the name `tunesmith`, so that the classes stay unmodified. A packed row is one batch row
of T tokens; where its segments begin comes as the standard keyword `cu_seq_lens_q` (S+1 offsets, the first 0, the last T),
which every class that follows the attention interface hands down, and what they share, and what stands in front of them, as one
more, `forest` (`models/forest.py`). A class that loses that one on the way computes rows without sharing rightly, and fails the
proof of sharing. Shapes: B=1, H query heads, K key/value heads, T tokens of the row, E head size.

An argument that we do not know and that is not None is an error, never ignored: a class that asks for something else than
causal attention, with a window, a soft-cap or sinks, is caught here or by the proof at the start of a run.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.models import prefix_attention
from tunesmith.models.forest import Forest, Front
from tunesmith.models.forest_attention import attend

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
    forest: Forest | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[B,H,T,E] queries and [B,K,T,E] keys and values to [B,T,H,E] outputs.

    Raises UnknownArgument for an argument that would change the result and that we do not serve.
    """
    refuse_unknown(module, attention_mask, dropout, others)
    if cu_seq_lens_q is None:
        raise UnknownArgument("the class does not hand document starts down to its attention")
    if q_BHTE.shape[2] != k_BKTE.shape[2]:
        raise UnknownArgument("keys and queries are not as many")
    if forest is None:
        forest = Forest(tuple(cu_seq_lens_q.tolist()))
    elif len(cu_seq_lens_q) != len(forest.starts):  # their values are on the device: to read them would wait for it
        raise UnknownArgument("the class has changed where documents begin")
    out_THE = attend(
        q_BHTE[0], k_BKTE[0], v_BKTE[0], forest, _fronts(module, forest, q_BHTE.dtype),
        scaling if scaling is not None else q_BHTE.shape[-1] ** -0.5, window=sliding_window, softcap=softcap, sinks_H=s_aux,
    )  # fmt: skip
    if forest.kept is not None:
        if module in forest.kept:
            raise UnknownArgument("the class asks one module for its attention twice, so that what it keeps has no one name")
        forest.kept[module] = (k_BKTE[0], v_BKTE[0])
    return out_THE[None], None


def refuse_unknown(module: torch.nn.Module, attention_mask: Tensor | None, dropout: float, others: dict[str, Any]) -> None:
    """Raises UnknownArgument for what is not causal attention with, at most, a window, a soft-cap and sinks."""
    unknown = sorted(name for name, value in others.items() if name not in _HARMLESS and value is not None)
    if unknown:
        raise UnknownArgument(f"attention asks for {', '.join(unknown)}")
    if dropout:
        raise UnknownArgument("attention asks for dropout")
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UnknownArgument("attention is not causal")
    if attention_mask is not None:
        raise UnknownArgument("attention asks for a mask of its own")


def _fronts(module: torch.nn.Module, forest: Forest, dtype: torch.dtype) -> list[Front]:
    """What stands in front of the row's roots at this layer: a method's prefix, then what rows in front have kept."""
    fronts = []
    if (prefix := prefix_attention.attached(module)) is not None:
        keys_KPE, values_KPE = prefix.keys_values()
        fronts.append((keys_KPE.to(dtype), values_KPE.to(dtype)))
    return fronts + [kept[module] for kept in forest.carried]


AttentionInterface.register(NAME, packed_attention)
