"""The gated product of an MLP as one function: it keeps gate and up, and neither act(gate) nor the product.

    x ─┬─ gate_proj ── act ──(·)── down_proj          dup   = dy · act(gate)
       └─ up_proj ────────────┘                       dgate = dy · up · act'(gate)

The class as it is keeps act(gate) too. The product is kept by down_proj, as far as that one learns, unless `train.recompute` has it
made again (`recipes.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.models import kernels
from tunesmith.models.parts import drawn, recipes

_aten: Any = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Names:
    """What a family calls the linear layers; `up` is empty where one layer gives gate and up, side by side."""

    gate: str
    up: str
    down: str


SAID = "our own gated products"  # to users
NAMES = (
    Names("gate_proj", "up_proj", "down_proj"),
    Names("w1", "w3", "w2"),  # LFM 2
    Names("gate_up_proj", "", "down_proj"),  # Phi 3, GLM
    Names("input_linear", "", "output_linear"),  # Granite's shared expert
)
# kind -> (activation, its gradient from dy and its input, each into an output)
KINDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "silu": (F.silu, lambda dy, x, out: _aten.silu_backward.grad_input(dy, x, grad_input=out)),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda dy, x, out: _aten.gelu_backward.grad_input(dy, x, approximate="tanh", grad_input=out),
    ),
    "gelu": (F.gelu, lambda dy, x, out: _aten.gelu_backward.grad_input(dy, x, approximate="none", grad_input=out)),
}
_WIDTH = 8  # of the stand-in on which a class is asked


def forward_of(module: nn.Module, dtype: torch.dtype) -> Any:
    """A forward for a module that is such an MLP, or None."""
    children = set(module._modules)
    names = next((n for n in NAMES if {n.gate, n.down, *([n.up] if n.up else [])} <= children), None)
    if names is None or len(children) > (4 if names.up else 3) or module._parameters or module._buffers:
        return None
    kind = next((kind for kind in KINDS if _is(module, names, kind, dtype)), None)
    return None if kind is None else _Forward(module, names, kind)


@dataclass(frozen=True, slots=True, eq=False)
class _Forward:
    module: nn.Module
    names: Names
    kind: str

    def __call__(self, x: Tensor) -> Tensor:
        layers: Any = self.module._modules
        gate = layers[self.names.gate](x)
        y = gated(gate, layers[self.names.up](x), self.kind) if self.names.up else gated_halves(gate, self.kind)
        return layers[self.names.down](y)


def _is(module: nn.Module, names: Names, kind: str, dtype: torch.dtype) -> bool:
    probe = drawn.stand_in(module)
    wide = _WIDTH if names.up else 2 * _WIDTH
    for name, rows in ((names.gate, wide), (names.up, _WIDTH), (names.down, _WIDTH)):
        if name:
            linear = nn.Linear(_WIDTH, rows, bias=False, device="meta")
            linear._parameters["weight"] = nn.Parameter(drawn.normal((rows, _WIDTH), dtype), requires_grad=False)
            probe._modules[name] = linear
    x = drawn.normal((1, 5, _WIDTH), dtype)
    return drawn.agree(lambda: type(module).forward(probe, x), lambda: _Forward(probe, names, kind)(x))


def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate)·up, of their shape and dtype."""
    y: Tensor = _Gated.apply(gate, up, kind)
    return y


def gated_halves(gate_up: Tensor, kind: str) -> Tensor:
    """The same of [..., 2·I], gate before up, to [..., I]. The two gradients are written side by side, with no copy."""
    y: Tensor = _GatedHalves.apply(gate_up, kind)
    return y


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kind: str) -> Tensor:
        y = _product(gate, up, kind)
        if all(ctx.needs_input_grad[:2]):
            recipes.remember(y, lambda *kept: _product(kept[0], kept[1], kind), gate, up)
        ctx.save_for_backward(gate, up)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        dgate, dup = _gradients(dy, gate, up, ctx.kind)
        return dgate, dup, None


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, kind: str) -> Tensor:
        y = _product_of_halves(gate_up, kind)
        if ctx.needs_input_grad[0]:
            recipes.remember(y, lambda kept: _product_of_halves(kept, kind), gate_up)
        ctx.save_for_backward(gate_up)
        ctx.kind = kind
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        both = torch.empty_like(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        _gradients(dy, gate, up, ctx.kind, both)
        return both, None


def _product(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    if _by_kernel(gate):
        from tunesmith.models.kernels.gated import gated_forward

        return gated_forward(gate, up, kind)
    return KINDS[kind][0](gate).mul_(up)


def _product_of_halves(gate_up: Tensor, kind: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return _product(gate, up, kind)


def _gradients(dy: Tensor, gate: Tensor, up: Tensor, kind: str, both: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(dgate, dup): the halves of `both`, where that is given."""
    if _by_kernel(gate):
        from tunesmith.models.kernels.gated import gated_backward

        first, second = (None, None) if both is None else both.chunk(2, dim=-1)
        return gated_backward(dy.contiguous(), gate, up, kind, None if first is None or second is None else (first, second))
    activation, gradient = KINDS[kind]
    act = activation(gate)
    if both is None:
        dgate = dy * up
        return gradient(dgate, gate, dgate), act.mul_(dy)
    dgate, dup = both.chunk(2, dim=-1)
    torch.mul(act, dy, out=dup)
    return gradient(torch.mul(dy, up, out=dgate), gate, dgate), dup


def _by_kernel(gate: Tensor) -> bool:
    return kernels.available(gate.device) and gate.dtype != torch.float64 and gate.stride(-1) == 1
