"""The activation of an MLP without a gate as one function: it keeps its input alone.

    x ── fc1 ── act ── fc2          dx = dy · act'(x)

Classes that write their GELU out keep some six tensors for it. The output is kept by fc2, as far as that one learns, unless
`train.recompute` has it made again (`recipes.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.models.parts import drawn, gated, recipes

SAID = "our own activations"  # to users
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **gated.KINDS,
    "relu_squared": (lambda x: F.relu(x).square_(), lambda dy, x, out: torch.mul(dy, F.relu(x).mul_(2), out=out)),
}


def forward_of(module: nn.Module, dtype: torch.dtype) -> Any:
    """A forward for a module that is such an activation, or None."""
    if module._parameters or module._modules or module._buffers:
        return None
    x, theirs = drawn.normal((64,), dtype, 3.0), type(module).forward
    kind = next((kind for kind in KINDS if drawn.agree(lambda: theirs(module, x), lambda: KINDS[kind][0](x))), None)  # noqa: B023
    return None if kind is None else _Forward(kind)


@dataclass(frozen=True, slots=True, eq=False)
class _Forward:
    kind: str

    def __call__(self, x: Tensor) -> Tensor:
        return activated(x, self.kind)


def activated(x: Tensor, kind: str) -> Tensor:
    """act(x), of its shape and dtype."""
    y: Tensor = _Activated.apply(x, kind)
    return y


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        y = KINDS[kind][0](x)
        if ctx.needs_input_grad[0]:
            recipes.remember(y, KINDS[kind][0], x)
        ctx.save_for_backward(x)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return KINDS[ctx.kind][1](dy, x, torch.empty_like(x)), None
