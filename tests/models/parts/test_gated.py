"""The gated product against autograd, and the MLPs that are recognised."""

# mypy: disable-error-code="assignment,method-assign,operator"

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from tunesmith.models.parts import gated

PLAIN = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


class Gated(nn.Module):
    def __init__(self, act="silu"):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down_proj, self.act_fn = nn.Linear(24, 16), ACT2FN[act]

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Fused(nn.Module):
    def __init__(self, gate_first=True):
        super().__init__()
        self.gate_up_proj, self.down_proj, self.gate_first = nn.Linear(16, 48), nn.Linear(24, 16), gate_first

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * F.silu(gate) if self.gate_first else gate * F.silu(up))


class Scaled(Gated):
    def forward(self, x):
        return super().forward(x) * 0.5


def gradients(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, direction)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", gated.KINDS)
def test_values_and_gradients_are_the_plain_ones_to_the_bit(kind, dtype):
    torch.manual_seed(0)
    gate, up = (torch.randn(2, 5, 24).mul(2).to(dtype) for _ in range(2))
    plain = gradients(lambda gate, up: PLAIN[kind](gate) * up, gate, up)
    assert all(map(torch.equal, gradients(lambda gate, up: gated.gated(gate, up, kind), gate, up), plain))
    both = torch.cat([gate, up], dim=-1)
    y, d = gradients(lambda both: gated.gated_halves(both, kind), both)
    tolerance = 2e-6 if dtype == torch.float32 else 0.0  # exp by vector and exp at the end of a row differ in their last bit
    torch.testing.assert_close((y, d), (plain[0], torch.cat(plain[1:], dim=-1)), rtol=tolerance, atol=tolerance)


def test_it_keeps_gate_and_up_alone():
    kept = set()

    def keep(tensor):
        kept.add(tensor.untyped_storage()._cdata)
        return tensor

    gate, up = (torch.randn(5, 24, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gated.gated(gate, up, "silu")
    assert kept == {gate.untyped_storage()._cdata, up.untyped_storage()._cdata}


@pytest.mark.parametrize("make", [Gated, lambda: Gated("gelu"), lambda: Gated("gelu_pytorch_tanh"), Fused])
def test_an_mlp_is_recognised_and_computes_what_its_class_computes(make):
    module = make()
    forward = gated.forward_of(module, torch.float32)
    x = torch.randn(3, 16)
    torch.testing.assert_close(forward(x), module(x), rtol=1e-6, atol=1e-6)
    assert forward.kind in gated.KINDS and "forward" not in vars(module)


@pytest.mark.parametrize("make", [lambda: Gated("relu"), Scaled, lambda: Fused(gate_first=False), lambda: nn.Linear(3, 3)])
def test_what_computes_something_else_is_left_alone(make):
    assert gated.forward_of(make(), torch.float32) is None


def test_its_linear_layers_are_called_as_they_are():
    """An adapter at a linear layer is an attribute of it."""
    module = Gated()
    forward = gated.forward_of(module, torch.float32)
    own = module.up_proj.forward
    module.up_proj.forward = lambda x: own(x) * 3
    x = torch.randn(3, 16)
    torch.testing.assert_close(forward(x), module(x), rtol=1e-6, atol=1e-6)
