"""act(gate)·up through the kernel against torch's own activations under autograd."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

from tunesmith.models.kernels import gated as kernel

# the interpreter's numpy says so where a sigmoid is zero, which is right
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "gelu": F.gelu}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(shape, dtype, device, halves=False):
    torch.manual_seed(1)
    both = torch.randn(*shape[:-1], 2 * shape[-1]).mul(3).to(device, dtype)
    gate, up = both[..., : shape[-1]], both[..., shape[-1] :]
    return (gate, up) if halves else (gate.contiguous(), up.contiguous())


def expected(gate, up, dy, kind):
    """(y, dgate, dup) from fp64, rounded where the plain computation rounds."""
    leaf, dtype = gate.detach().double().requires_grad_(), gate.dtype
    act = ACTIVATIONS[kind](leaf)
    (slope,) = torch.autograd.grad(act.sum(), leaf)
    act = act.detach().to(dtype)
    return act * up, ((dy * up).double() * slope).to(dtype), dy * act


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 96), (3, 2500)], ids=str)
def test_values_and_gradients_are_those_of_the_formula(kind, dtype, halves, shape, device):
    gate, up = drawn(shape, dtype, device, halves)
    dy = torch.randn(shape, device=device).to(dtype)
    found = kernel.gated_forward(gate, up, kind), *kernel.gated_backward(dy, gate, up, kind)
    close = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for ours, theirs in zip(found, expected(gate, up, dy, kind), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=close, atol=1e-5)  # far below zero 1 + erf and 1 + tanh cancel, in torch too
        large = theirs.abs() > 0.01
        assert dtype == torch.float32 or (ours != theirs)[large].float().mean() < 0.01, "the roundings are those of the plain computation"


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_it_is_what_torch_computes(kind, device):
    gate, up = drawn((7, 128), torch.float32, device)
    leaves: Any = gate.clone().requires_grad_(), up.clone().requires_grad_()
    dy = torch.randn(7, 128, device=device)
    y = ACTIVATIONS[kind](leaves[0]) * leaves[1]
    y.backward(dy)
    torch.testing.assert_close(kernel.gated_forward(gate, up, kind), y, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(kernel.gated_backward(dy, gate, up, kind), [leaf.grad for leaf in leaves], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_of_halves_are_halves_of_one_tensor(device):
    gate, up = drawn((2, 5, 32), torch.float32, device, halves=True)
    dgate, dup = kernel.gated_backward(torch.randn(2, 5, 32, device=device), gate, up, "silu")
    assert dup.data_ptr() == dgate.data_ptr() + 4 * 32 and dgate.stride() == gate.stride()
    bases: list[Any] = [dgate._base, dup._base]
    assert bases[0] is bases[1] and bases[0].shape == (2, 5, 64)


def test_gradients_are_written_where_they_are_wanted(device):
    gate, up = drawn((3, 32), torch.float32, device)
    dy, both = torch.randn(3, 32, device=device), torch.empty(3, 64, device=device)
    expected = kernel.gated_backward(dy, gate, up, "silu")
    found = kernel.gated_backward(dy, gate, up, "silu", (both[:, :32], both[:, 32:]))
    assert found[0].data_ptr() == both.data_ptr() and torch.equal(both, torch.cat(expected, -1))
    with pytest.raises(AssertionError):
        kernel.gated_backward(dy, gate, up, "silu", (both[:, :32], torch.empty(3, 32, device=device)))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_far_from_zero_nothing_overflows(kind, device):
    gate = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], device=device)
    up, dy = torch.ones_like(gate), torch.ones_like(gate)
    leaf = gate.clone().requires_grad_()
    ACTIVATIONS[kind](leaf).sum().backward()
    torch.testing.assert_close(kernel.gated_forward(gate, up, kind), ACTIVATIONS[kind](gate), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kernel.gated_backward(dy, gate, up, kind)[0], leaf.grad, rtol=1e-6, atol=1e-6)


def test_nothing_of_nothing(device):
    empty = torch.zeros(0, 8, device=device)
    assert kernel.gated_forward(empty, empty, "silu").shape == kernel.gated_backward(empty, empty, empty, "silu")[0].shape == (0, 8)


def test_what_is_not_known_is_refused(device):
    gate, up = drawn((2, 8), torch.float32, device)
    with pytest.raises(ValueError, match="'relu' is not known here, silu"):
        kernel.gated_forward(gate, up, "relu")
    with pytest.raises(ValueError, match=r"float32, torch\.bfloat16"):
        kernel.gated_forward(gate, up.bfloat16(), "silu")
    with pytest.raises(ValueError, match="float64"):
        kernel.gated_backward(gate.double(), gate, up, "silu")
    with pytest.raises(AssertionError):
        kernel.gated_forward(gate, up[:1], "silu")
    with pytest.raises(AssertionError):
        kernel.gated_forward(gate.T.contiguous().T, up, "silu")
