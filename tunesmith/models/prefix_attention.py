"""Keys and values that stand in front of every document at a layer's attention, kept once: a prefix of a method, or one that was
drawn for a proof. How they are attended to stands in `models/merged_attention.py`.

Shapes: T tokens of the row, P positions of the prefix, H query heads, K key/value heads, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import attend

PREFIX = "prefix"  # the attribute of an attention module under which its prefix stands


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values in front of a layer's documents, as given: what was computed once, or drawn for a proof."""

    layer: int
    keys_KPE: Tensor
    values_KPE: Tensor

    @property
    def prefix_tokens(self) -> int:
        return self.keys_KPE.shape[1]

    def keys_values(self) -> tuple[Tensor, Tensor]:
        return self.keys_KPE, self.values_KPE

    def attach(self, layer: torch.nn.Module) -> None:
        attach(layer, self)

    def detach(self, layer: torch.nn.Module) -> None:
        detach(layer)


def attach(layer: torch.nn.Module, prefix: Any) -> None:
    """Let our attention find `prefix` (something with `keys_values()`) at a layer's attention module, out of its tree."""
    object.__setattr__(layer, PREFIX, prefix)


def detach(layer: torch.nn.Module) -> None:
    vars(layer).pop(PREFIX, None)


def attached(layer: torch.nn.Module) -> Any:
    return vars(layer).get(PREFIX)


def behind_prefix(
    q_HTE: Tensor,
    k_KTE: Tensor,
    v_KTE: Tensor,
    prefix_k_KPE: Tensor,
    prefix_v_KPE: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Causal attention within each document, and of every token over the whole prefix: [H, T, E], laid out as [T, H, E].

    `starts` are D+1 offsets, the first 0, the last T; documents may be empty, the prefix may not. Everything is of one dtype.
    A window counts positions, the prefix's among them: a token at p of its document sees keys from P + p − window + 1 on.
    """
    front = [(prefix_k_KPE, prefix_v_KPE)]
    return attend(q_HTE, k_KTE, v_KTE, Forest(tuple(starts)), front, scale, window=window, softcap=softcap, sinks_H=sinks_H).transpose(0, 1)
