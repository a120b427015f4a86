"""PyTorch's own layer norm, which is one function already; what it gives can be made again from its input, so it need not be kept
where `train.recompute` is elementwise (`recipes.py`)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.models.parts import recipes

SAID = "layer norms made again"  # to users


def forward_of(module: nn.Module, dtype: torch.dtype) -> Any:
    """A forward for a layer norm with a weight, or None."""
    plain = type(module) is nn.LayerNorm and module.weight is not None and len(module.normalized_shape) == 1
    return _Forward(module) if plain else None


@dataclass(frozen=True, slots=True, eq=False)
class _Forward:
    module: Any

    def __call__(self, x: Tensor) -> Tensor:
        y = nn.LayerNorm.forward(self.module, x)
        if x.requires_grad:  # then the operator keeps x
            weights = [one for one in (self.module.weight, self.module.bias) if one is not None]
            recipes.remember(y.detach(), partial(_again, self.module.eps), x, *weights)
        return y


def _again(epsilon: float, x: Tensor, weight_C: Tensor, bias_C: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, weight_C.shape, weight_C, bias_C, epsilon)
