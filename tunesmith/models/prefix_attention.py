"""Keys and values that stand in front of every document at a layer's attention, kept once: a prefix of a method, or one that was
drawn for a proof. How they are attended to stands in `models/merged_attention.py`.

Shapes: P positions of the prefix, K key/value heads, E head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
