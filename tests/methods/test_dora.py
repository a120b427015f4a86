"""DoRA's module against the formula as plain autograd computes it, its norm, its first values."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.test_lora import layer
from tests.tiny_models import some_documents, some_ids, tiny
from tunesmith.data.corpus.batches import Plan
from tunesmith.methods import dora, method
from tunesmith.methods.dora import DoRA
from tunesmith.methods.settings import DoRA as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.models.nf4 import weight_of
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.optim import Optimizer
from tunesmith.step.recompute import recompute_blocks

KINDS = ["linear", "no bias", "conv1d", "nf4"]


def module(dropout: float = 0.0) -> DoRA:
    torch.manual_seed(2)
    made = DoRA(64, 10, 4, 1.5, dropout)
    with torch.no_grad():
        made.A.normal_()
        made.B.normal_()
        made.magnitude.normal_(2.0)
    return made


def begin(model: Any, **settings: Any) -> Any:
    chosen = Settings(**settings)
    tuning = dora.build(model, chosen)
    dora.init(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    return tuning


def formula(base: Any, update: DoRA, x: torch.Tensor) -> torch.Tensor:
    """Equation 5 of the paper with a dense product, the norm a constant."""
    turned_OI = weight_of(base).float() + update.scale * update.B @ update.A
    y = x @ (update.magnitude / turned_OI.norm(dim=1).detach() * turned_OI.T).to(x.dtype)
    return y if base.bias is None else y + base.bias


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(7,), (40, 3), ()], ids=["fewer rows than channels", "more rows", "one"])
def test_value_and_gradients_are_those_of_the_formula(kind: str, leading: tuple[int, ...]) -> None:
    base, update = layer(kind), module()
    x = torch.randn(*leading, 64, requires_grad=True)
    y, expected = update(base, x), formula(base, update, x)
    assert y.shape == (*leading, 10)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    leaves, direction = [x, update.A, update.B, update.magnitude], torch.randn(y.shape)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_no_gradient_of_an_input_that_needs_none() -> None:
    y = module()(layer("linear"), torch.randn(3, 64))
    assert y.grad_fn.needs_input_grad[0] is False
    y.sum().backward()


@pytest.mark.parametrize("kind", ["linear", "no bias", "nf4"])
def test_dropout_leaves_what_is_dropped_to_the_base(kind: str) -> None:
    base, update = layer(kind), module(dropout=0.5)
    x = torch.randn(50, 64, requires_grad=True)
    torch.testing.assert_close(update(base, x), module()(base, x))
    update.train()
    torch.manual_seed(3)
    y = update(base, x)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    bias = 0 if base.bias is None else base.bias
    expected = slots.own_forward(base, x) + formula(base, update, dropped) - bias - dropped @ weight_of(base).float().T
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    leaves = [x, update.A, update.B, update.magnitude]
    for ours, theirs in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_exact_without_a_dense_product(kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dora, "_NORM_ROWS", 3)
    base, update = layer(kind, dtype), module()
    weight_OI = weight_of(base)
    dense = (weight_OI.double() + 1.5 * update.B.double() @ update.A.double()).norm(dim=1)
    norm = update.norm(base, weight_OI)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), dense, rtol=1e-6, atol=0)


def test_the_norm_is_computed_once_for_a_step_and_again_after_it() -> None:
    base, update = layer("linear"), module()
    optimizer = Optimizer(dict(update.named_parameters()), "adamw", weight_decay=0.0, ratios={})
    x = torch.randn(5, 64)
    update(base, x).sum().backward()
    first = update.norm(base, base.weight)
    update(base, x).sum().backward()
    assert update.norm(base, base.weight) is first
    squares = update._squares(base, base.weight)
    optimizer.step(0.1)
    fresh = update.norm(base, base.weight)
    assert fresh is not first and not torch.equal(fresh, first), "the fused step moves A and B without a version of its own"
    torch.testing.assert_close(fresh, (base.weight + 1.5 * update.B @ update.A).norm(dim=1).detach())
    assert update._squares(base, base.weight) is squares, "the base's own part is kept"


def test_another_base_has_another_norm() -> None:
    update, base = module(), layer("linear")
    first = update.norm(base, base.weight)
    with torch.no_grad():
        base.weight.mul_(2)
    assert not torch.equal(update.norm(base, base.weight), first)
    other = layer("no bias")
    torch.testing.assert_close(update.norm(other, other.weight), (other.weight + 1.5 * update.B @ update.A).norm(dim=1).detach())


def test_bf16_feels_a_length_that_bf16_cannot_hold() -> None:
    """1.003 is 1 in bf16: what is laid on the product is the difference from one, in fp32, rounded once."""
    base = layer("no bias", torch.bfloat16)
    update = DoRA(64, 10, 4, 1.0)
    with torch.no_grad():
        update.A.normal_()
        update.magnitude.copy_(1.003 * update.norm(base, base.weight))
    x = torch.randn(4000, 64, dtype=torch.bfloat16, requires_grad=True)
    y, plain = update(base, x), base(x)
    assert ((y.float() * plain.float()).sum() / plain.float().square().sum()).item() == pytest.approx(1.003, abs=2e-4)
    y.sum().backward()
    assert update.magnitude.grad is not None and update.magnitude.grad.dtype == torch.float32
    expected = (plain.float() / update.norm(base, base.weight)).sum(0)
    torch.testing.assert_close(update.magnitude.grad, expected, rtol=0.05, atol=1.0)


def test_a_large_bias_does_not_drown_the_gradient_of_the_length() -> None:
    base, update = layer("linear", torch.bfloat16), module()
    base.bias.fill_(300.0)
    x = torch.randn(500, 64, dtype=torch.bfloat16)
    update(base, x).sum().backward()
    exact = layer("linear").requires_grad_(False)
    exact.weight.copy_(base.weight.float())
    twin = module()
    twin(exact, x.float()).sum().backward()
    assert update.magnitude.grad is not None and twin.magnitude.grad is not None
    torch.testing.assert_close(update.magnitude.grad, twin.magnitude.grad, rtol=0.02, atol=2.0)


def test_rows_of_zeros_stay_zero_and_nothing_is_nan() -> None:
    base = layer("no bias")
    base.weight[3] = 0
    update = DoRA(64, 10, 4, 1.0)
    with torch.no_grad():
        update.A.normal_()
        update.magnitude.copy_(base.weight.norm(dim=1))
    x = torch.randn(6, 64, requires_grad=True)
    y = update(base, x)
    y.square().sum().backward()
    torch.testing.assert_close(y, base(x))
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in [x, *update.parameters()])
    assert torch.isfinite(update.folded(base.weight)).all()


def test_folded_is_the_matrix_that_base_and_update_are_together() -> None:
    base, update = layer("linear"), module()
    x = torch.randn(5, 64)
    torch.testing.assert_close(x @ update.folded(base.weight).T + base.bias, update(base, x), rtol=1e-5, atol=1e-4)
    given = torch.randn(10, 64)
    torch.testing.assert_close(update.folded(given).norm(dim=1), update.magnitude.abs().detach())


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_the_start_is_the_base(name: str) -> None:
    model, ids = tiny(name), some_ids(8)[None]
    before = model(ids).logits
    tuning = begin(model)
    slots.place(model, tuning.adapter)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=2e-6 if name == "gpt2" else 1e-6)
    for path, update in tuning.adapter.items():
        torch.testing.assert_close(update.magnitude, weight_of(model.get_submodule(path)).norm(dim=1))


def test_what_is_trained() -> None:
    tuning = begin(tiny("llama"), rank=3, targets=["q", "down"], plus_ratio=16)
    assert list(tuning.parameters)[:3] == [f"model.layers.0.self_attn.q_proj.{name}" for name in ("A", "B", "magnitude")]
    assert tuning.count == 2 * (3 * (64 + 64 + 128 + 64) + 64 + 64)
    assert {name.rpartition(".")[2] for name in tuning.learning_rate_ratios} == {"B"}


def test_computing_blocks_again_gives_the_same_gradients_to_the_bit() -> None:
    def gradients(again: bool) -> list[torch.Tensor]:
        model = tiny("llama")
        tuning = begin(model)
        with torch.no_grad():
            for parameter in tuning.parameters.values():
                parameter.add_(0.01)
        method.place(model, tuning)
        forward = prepare(model, Proof(True, True, ()), "sdpa")
        if again:
            recompute_blocks(model)
        [row] = Plan(some_documents([9, 14, 6]), 64, 64, 0).rows(0)
        forward.loss(row).backward()
        return [parameter.grad for parameter in tuning.parameters.values() if parameter.grad is not None]

    kept, computed = gradients(False), gradients(True)
    assert len(kept) == 3 * 14 and all(torch.equal(one, other) for one, other in zip(kept, computed, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_the_update(kind: str) -> None:
    base, update = layer(kind), module()
    x = torch.randn(3, 64)
    with torch.no_grad():
        down, up, beyond = update.factors(base)
        assert beyond is not None
        y = (x @ weight_of(base).T + x @ down.T @ up.T) * (1 + beyond)
        assert torch.allclose(y if base.bias is None else y + base.bias, formula(base, update, x), atol=1e-4)
