"""Activations without a gate against autograd, and which are recognised."""

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from tunesmith.models.parts import activation

PLAIN = {"silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "relu_squared": ACT2FN["relu2"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", activation.KINDS)
def test_values_and_gradients_are_the_plain_ones(kind, dtype):
    torch.manual_seed(0)
    x, direction = (torch.randn(2, 5, 24).mul(2).to(dtype) for _ in range(2))
    found = []
    for way in (PLAIN[kind], lambda x: activation.activated(x, kind)):
        leaf = x.clone().requires_grad_()
        y = way(leaf)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, direction)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6 if dtype == torch.float32 else 0.01, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("silu", "silu"), ("relu2", "relu_squared")])
def test_a_class_is_recognised_by_what_it_computes(name, kind):
    assert activation.forward_of(ACT2FN[name], torch.float32).kind == kind


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Tanh(), nn.Dropout().eval(), nn.Identity(), nn.Linear(2, 2)])
def test_what_computes_something_else_is_left_alone(module):
    assert activation.forward_of(module, torch.float32) is None


def test_a_gelu_that_is_written_out_keeps_one_tensor_instead_of_many():
    def kept(function):
        found = set()

        def keep(tensor):
            if tensor.numel() > 1:
                found.add(tensor.untyped_storage()._cdata)
            alive.append(tensor)
            return tensor

        alive = []
        x = torch.randn(5, 24, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            function(x)
        return len(found)

    assert kept(lambda x: activation.activated(x, "gelu_tanh")) == 1
    assert kept(ACT2FN["gelu_new"]) > 3
