"""LoRA's module, its first values and its gradients, against plain autograd."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import lora, method
from tunesmith.methods.lora import LoRA, scale_of
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.models.nf4 import Nf4Linear, quantize


def layer(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    if kind == "nf4":
        made: Any = Nf4Linear(64, 10, True, True, dtype)
        q = quantize(torch.randn(10, 64, dtype=dtype), True)
        made.weight.data.copy_(q.codes_OI)
        made.absmax.copy_(q.absmax)
        made.nested_absmax.copy_(q.nested_absmax)
        made.offset.copy_(q.offset)
        made.bias.data.normal_()
        return made
    made = {"linear": lambda: nn.Linear(64, 10), "no bias": lambda: nn.Linear(64, 10, bias=False), "conv1d": lambda: Conv1D(10, 64)}[kind]()
    return made.to(dtype).requires_grad_(False)


def module(dropout: float = 0.0) -> LoRA:
    torch.manual_seed(2)
    made = LoRA(64, 10, 4, 1.5, dropout)
    made.A.data.normal_()
    made.B.data.normal_()
    return made


def begin(tuning: Any, settings: Settings | None = None, seed: int = 0, model: Any = None) -> None:
    lora.init(tuning, Start(model or tiny("llama"), None, seed, lambda path: torch.empty(0)), settings or Settings())


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d", "nf4"])
@pytest.mark.parametrize("leading", [(7,), (2, 3), ()])
def test_value_and_gradients_are_those_of_the_formula(kind, leading):
    base, update = layer(kind), module()
    x = torch.randn(*leading, 64, requires_grad=True)
    y = update(base, x)
    expected = slots.own_forward(base, x) + 1.5 * ((x @ update.A.T) @ update.B.T)
    assert y.shape == (*leading, 10)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    leaves, direction = [x, update.A, update.B], torch.randn(y.shape)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_plain_operators_give_the_same(kind):
    base, update = layer(kind), module()
    x = torch.randn(7, 64, requires_grad=True)
    fast, leaves = update(base, x), [x, update.A, update.B]
    update.plain = True
    assert update.low_rank(base, x.dtype) is None
    plain = update(base, x)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(fast.sum(), leaves), torch.autograd.grad(plain.sum(), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_no_gradient_of_an_input_that_needs_none():
    """The first layer's input is data: dY·W is not computed there."""
    y = module()(layer("linear"), torch.randn(3, 64))
    assert y.requires_grad and y.grad_fn.needs_input_grad[0] is False
    y.sum().backward()


def test_bf16_computes_in_bf16_and_keeps_masters_in_fp32():
    base, update = layer("linear", torch.bfloat16), module()
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    y = update(base, x)
    y.sum().backward()
    assert x.grad is not None and update.A.grad is not None
    assert y.dtype == x.grad.dtype == torch.bfloat16 and update.A.dtype == update.A.grad.dtype == torch.float32
    exact = x.float() @ update.folded(base.weight).T + base.bias.float()
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.3)


def test_folded_is_the_matrix_that_base_and_update_are_together():
    base, update = layer("linear"), module()
    x = torch.randn(5, 64)
    torch.testing.assert_close(x @ update.folded(base.weight).T + base.bias, update(base, x), rtol=1e-5, atol=1e-4)
    assert update.folded(base.weight.bfloat16()).dtype == torch.float32


def test_dropout_is_on_the_updates_input_and_only_while_training():
    base, update = layer("linear"), module(dropout=0.5)
    x = torch.randn(1000, 64)
    update.eval()
    quiet = update(base, x)
    torch.testing.assert_close(quiet, module()(base, x))
    update.train()
    torch.manual_seed(3)
    noisy = update(base, x)
    torch.manual_seed(3)
    assert torch.equal(noisy, update(base, x)) and not torch.allclose(noisy, quiet)
    torch.manual_seed(3)
    dropped = nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(noisy, base(x) + 1.5 * (dropped @ update.A.T) @ update.B.T)
    mean = torch.stack([update(base, x[:1]) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, quiet[:1], rtol=0.1, atol=4.0)


def test_scales():
    assert scale_of(16, 8, False) == 2.0 and scale_of(16, 4, True) == 8.0
    model = tiny("llama")

    def scale(**settings):
        return next(iter(lora.build(model, Settings(**settings)).adapter.values())).scale

    assert scale() == 2.0 and scale(rank=64) == 2.0  # auto is 2·rank
    assert scale(alpha=8, rank=16) == 0.5 and scale(alpha=8, rank=16, rslora=True) == 2.0


def test_build_makes_one_module_for_each_target():
    model = tiny("llama")
    tuning = lora.build(model, Settings(rank=3, targets=["q", "down"], dropout=0.1))
    assert list(tuning.adapter) == [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert list(tuning.parameters)[:2] == ["model.layers.0.self_attn.q_proj.A", "model.layers.0.self_attn.q_proj.B"]
    assert [tuple(p.shape) for p in tuning.parameters.values()][2:4] == [(3, 128), (64, 3)]
    assert tuning.count == 2 * 3 * (64 + 64 + 128 + 64) and tuning.learning_rate_ratios == {}
    assert all(module.dropout == 0.1 for module in tuning.adapter.values())


def test_plus_ratio_is_for_b_alone():
    tuning = lora.build(tiny("llama"), Settings(plus_ratio=16))
    assert set(tuning.learning_rate_ratios.values()) == {16.0}
    assert set(tuning.learning_rate_ratios) == {name for name in tuning.parameters if name.endswith(".B")}


def test_gaussian_first_values():
    tuning = lora.build(tiny("llama"), Settings(rank=16))
    begin(tuning, Settings(rank=16, init="gaussian"))
    values = torch.cat([p.flatten() for name, p in tuning.parameters.items() if name.endswith(".A")]).detach()
    assert values.std().item() == pytest.approx(1 / 16, rel=0.03) and abs(values.mean().item()) < 0.002
    assert all(p.abs().max() == 0 for name, p in tuning.parameters.items() if name.endswith(".B"))


def test_orthogonal_first_values_are_the_base_although_neither_is_zero():
    tuning = lora.build(tiny("llama"), Settings(rank=6, init="orthogonal"))
    begin(tuning, Settings(rank=6, init="orthogonal"))
    modules: Any = tuning.adapter.values()
    for made in modules:
        A, B = made.A.detach(), made.B.detach()
        assert A.norm() > 0.5 and B.norm() > 0.5 and (B @ A).abs().max() < 1e-7
        assert torch.linalg.matrix_rank(A) == torch.linalg.matrix_rank(B) == 3
    with pytest.raises(UserError, match=r"^method lora: method\.init=orthogonal needs an even rank, not 5"):
        method.build(tiny("llama"), Settings(rank=5, init="orthogonal"), quantized=False)


def test_first_values():
    model = tiny("llama")
    tuning = lora.build(model, Settings(rank=16))
    begin(tuning)
    for name, parameter in tuning.parameters.items():
        if name.endswith(".B"):
            assert parameter.abs().max() == 0
        else:
            bound = parameter.shape[1] ** -0.5
            assert 0.9 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1) and abs(parameter.mean()) < 0.1 * bound
    ids = some_ids(8)[None]
    before = model(ids).logits
    slots.place(model, tuning.adapter)
    assert torch.equal(model(ids).logits, before), "the start is the base"


@pytest.mark.parametrize("start", ["kaiming", "gaussian", "orthogonal"])
def test_first_values_depend_on_seed_and_path_alone(start):
    def values(seed, **settings):
        settings = {"init": start} | settings
        tuning = lora.build(tiny("llama"), Settings(**settings))
        torch.manual_seed(seed + 100)
        begin(tuning, Settings(**settings), seed)
        return {name: parameter.detach() for name, parameter in tuning.parameters.items() if name.endswith(".A")}

    one, again, other, fewer = values(0), values(0), values(1), values(0, targets=["o"])
    assert all(torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(one[name], fewer[name]) for name in fewer)
    assert not torch.equal(one["model.layers.0.self_attn.q_proj.A"], one["model.layers.0.self_attn.o_proj.A"])


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_factors_are_the_update(kind):
    base, update = layer(kind), module()
    down, up, beyond = update.factors(base)
    x = torch.randn(3, 64)
    assert beyond is None
    assert torch.allclose(base(x) + x @ down.T @ up.T, update(base, x), atol=1e-5)
