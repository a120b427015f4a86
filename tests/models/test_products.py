"""A frozen layer and what stands beside it, against plain autograd; alone and several at once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models import nf4, products
from tunesmith.models.nf4 import Nf4Linear, quantize, weight_of
from tunesmith.models.products import Product, Update, kept, thin, thin_space, updated

IN, RANKS, SCALES = 64, (4, 2, 4), (1.5, 0.3, 2.0)


def layer(kind: str, out: int, dtype: torch.dtype = torch.float32) -> Any:
    if kind == "nf4":
        made: Any = Nf4Linear(IN, out, True, True, dtype)
        made.exchange(quantize(torch.randn(out, IN), True))
        made.bias = nn.Parameter(torch.randn(out, dtype=dtype), requires_grad=False)
        return made
    made = Conv1D(out, IN) if kind == "conv1d" else nn.Linear(IN, out, bias=kind == "linear")
    return made.to(dtype).requires_grad_(False)


def beside(base: nn.Module, out: int, rank: int, scale: float, dtype: torch.dtype = torch.float32, halves: int = 1) -> Update:
    """As LoRA (`halves` 1) or PiSSA (2) makes it; the second halves are constants."""
    A, B = nn.Parameter(torch.randn(rank, IN)), nn.Parameter(torch.randn(out, rank))
    down, up = A.detach(), B.detach()
    if halves == 2:
        down, up = torch.cat([down, down - torch.randn(rank, IN)]), torch.cat([up - torch.randn(out, rank), torch.randn(out, rank)], 1)
    return Update(base, A, B, down.to(dtype), (scale * up).to(dtype), scale)


def plainly(x: Tensor, update: Update) -> Tensor:
    """The same by plain operators, in which A and B are leaves."""
    rank, (down, up) = len(update.A), (update.down_KI, update.up_OK / update.scale)
    A0 = [update.A + (half - update.A.detach()) for half in down.split(rank)]
    B0 = [up[:, :rank] + (update.B - update.B.detach()), *up[:, rank:].split(rank, 1)]
    weight_OI = weight_of(update.layer) + update.scale * torch.cat(B0, 1) @ torch.cat(A0)
    return nn.functional.linear(x, weight_OI, update.layer.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d", "nf4"])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("leading", [(7,), (2, 3), ()])
def test_several_layers_of_one_input_are_what_plain_autograd_makes_of_each(kind, halves, leading):
    torch.manual_seed(0)
    outs = (10, 6, 32)
    updates = [beside(layer(kind, o), o, r, s, halves=halves) for o, r, s in zip(outs, RANKS, SCALES, strict=True)]
    x = torch.randn(*leading, IN, requires_grad=True)
    ours, theirs = updated(x, updates), [plainly(x, update) for update in updates]
    leaves = [x, *[tensor for update in updates for tensor in (update.A, update.B)]]
    directions = [torch.randn(y.shape) for y in ours]
    for y, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=2e-5)
        assert y._base is None  # a class may change it in place
    gradients = torch.autograd.grad(ours, leaves, directions), torch.autograd.grad(theirs, leaves, directions)
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("halves", [1, 2])
def test_a_gpus_order_of_memory_gives_the_same(halves, monkeypatch):
    """Its rows are those of tokens; the products are the same functions."""
    torch.manual_seed(0)
    updates = [beside(layer("linear", o), o, r, s, halves=halves) for o, r, s in zip((10, 6, 32), RANKS, SCALES, strict=True)]
    x = torch.randn(7, IN, requires_grad=True)
    leaves = [x, *[tensor for update in updates for tensor in (update.A, update.B)]]

    def found() -> list[Tensor]:
        outputs = updated(x, updates)
        return [*outputs, *torch.autograd.grad(sum(y.sum() for y in outputs), leaves)]  # type: ignore[arg-type]

    here = found()
    monkeypatch.setattr(products, "_along_tokens", lambda device: False)
    assert thin(torch.randn(3, IN), x.detach()).stride() == (1, 3) and thin_space(8, x).stride() == (1, 8)
    for ours, theirs in zip(found(), here, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_an_output_that_nobody_uses_has_no_gradient_and_leaves_none_behind():
    torch.manual_seed(0)
    updates = [beside(layer("linear", 8), 8, 4, 1.0) for _ in range(3)]
    x = torch.randn(5, IN, requires_grad=True)
    _, y, _ = updated(x, updates)
    y.square().sum().backward()
    assert updates[0].A.grad is None and updates[2].B.grad is None and updates[1].A.grad is not None
    (expected,) = torch.autograd.grad(plainly(x, updates[1]).square().sum(), x)
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-4)


def test_no_gradient_of_an_input_that_needs_none(monkeypatch):
    def refused(*args: Any) -> Any:
        raise AssertionError("dY·W is not needed")

    updates = [beside(layer("linear", 8), 8, 4, 1.0) for _ in range(2)]
    outputs = updated(torch.randn(5, IN), updates)
    monkeypatch.setattr(products, "backward_of", refused)
    sum(y.sum() for y in outputs).backward()  # type: ignore[union-attr]
    assert updates[0].A.grad is not None and updates[1].B.grad is not None


def test_x_is_kept_once_for_all_layers_of_a_group():
    updates = [beside(layer("linear", 8), 8, 4, 1.0) for _ in range(3)]
    x = torch.randn(500, IN, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        updated(x, updates)
    assert sum(t.numel() for t in saved if t.shape[0] == 500) == x.numel()
    assert sum(t.numel() for t in saved) == x.numel() + 12 * 500 + 12 * IN  # x, P and the three A


def test_bf16_is_within_its_rounding_of_fp32():
    torch.manual_seed(0)
    update = beside(layer("linear", 32, torch.bfloat16), 32, 4, 2.0, torch.bfloat16)
    x = torch.randn(40, IN, dtype=torch.bfloat16, requires_grad=True)
    (y,) = updated(x, [update])
    gradients = torch.autograd.grad(y, [x, update.A, update.B], torch.ones_like(y))
    exact = x.detach().float().requires_grad_()
    A, B = (tensor.detach().clone().requires_grad_() for tensor in (update.A, update.B))
    expected = exact @ (update.layer.weight.float() + 2.0 * B @ A).T + update.layer.bias.float()  # type: ignore[operator, union-attr]
    assert y.dtype == gradients[0].dtype == torch.bfloat16 and gradients[1].dtype == gradients[2].dtype == torch.float32
    for found, true in zip((y, *gradients), (expected, *torch.autograd.grad(expected.sum(), [exact, A, B])), strict=True):
        assert (found.float() - true).norm() < 0.01 * true.norm()


def test_a_matrix_in_4_bits_is_dequantised_once_a_pass(monkeypatch):
    updates = [beside(layer("nf4", o), o, 4, 1.0) for o in (8, 16)]
    made: list[int] = []
    plain = nf4.dequantize

    def counted(codes: Any, shape: tuple[int, int], *others: Any) -> Tensor:
        made.append(shape[0])
        return plain(codes, shape, *others)

    monkeypatch.setattr(nf4, "dequantize", counted)
    outputs = updated(torch.randn(5, IN, requires_grad=True), updates)
    assert made == [8, 16]
    sum(y.sum() for y in outputs).backward()  # type: ignore[union-attr]
    assert made == [8, 16, 8, 16]


@pytest.mark.parametrize("kind", ["linear", "no bias"])
def test_a_product_of_another_kind_takes_the_layer_over_in_both_directions(kind):
    torch.manual_seed(0)
    base, called = layer(kind, 10), []
    weight_OI = base.weight.detach().clone()
    update, x = beside(base, 10, 4, 1.5), torch.randn(5, IN, requires_grad=True)
    expected = plainly(x, update)
    wanted = torch.autograd.grad(expected.sum(), [x, update.A])
    base.weight.data.zero_()  # whoever still reads it is found out

    def forward(x_NI: Tensor) -> Tensor:
        called.append("forward")
        return x_NI @ weight_OI.T

    def backward(dy_NO: Tensor) -> Tensor:
        called.append("backward")
        return dy_NO @ weight_OI

    products.exchange(base, Product(forward, backward))
    (y,) = updated(x, [update])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for found, gradient in zip(torch.autograd.grad(y.sum(), [x, update.A]), wanted, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-4)
    assert called == ["forward", "backward"]
    products.restore(base)
    assert not torch.allclose(updated(x, [update])[0], y)


def test_backward_of_adds_into_what_is_there():
    base, dy_NO, before = layer("linear", 10), torch.randn(5, 10), torch.randn(5, IN)
    into = before.clone()
    assert products.backward_of(base, dy_NO, into) is into
    torch.testing.assert_close(into, before + dy_NO @ base.weight, rtol=1e-5, atol=1e-5)


def test_thin_products_lie_along_the_tokens_on_a_cpu():
    factor_RI, x_NI = torch.randn(3, IN), torch.randn(50, IN)
    found = thin(factor_RI, x_NI)
    torch.testing.assert_close(found, factor_RI @ x_NI.T)
    assert found.stride() == (50, 1)
    space = thin_space(8, x_NI)
    assert space.shape == (8, 50) and space.stride() == (50, 1)
    into = thin(factor_RI, x_NI, space[2:5])
    assert into.data_ptr() == space[2].data_ptr() and torch.equal(space[2:5], found)


def test_factors_are_made_again_only_when_a_source_changed():
    source, store, calls = nn.Parameter(torch.ones(3)), {}, []  # type: ignore[var-annotated]

    def make() -> list[Tensor]:
        calls.append(1)
        return [2 * source]

    first = kept(store, torch.bfloat16, [source], make)
    assert kept(store, torch.bfloat16, [source], make)[0] is first[0] and len(calls) == 1
    assert first[0].dtype == torch.bfloat16 and not first[0].requires_grad
    with torch.no_grad():
        source.mul_(3)
    assert torch.equal(kept(store, torch.bfloat16, [source], make)[0], torch.full((3,), 6, dtype=torch.bfloat16)) and len(calls) == 2
    assert kept(store, torch.float32, [source], make)[0].dtype == torch.float32 and len(calls) == 3
    other = nn.Parameter(torch.zeros(3))  # a copy has the same version, and other values perhaps
    assert kept(store, torch.float32, [other], make)[0] is not None and len(calls) == 4
