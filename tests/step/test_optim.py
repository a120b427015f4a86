"""The optimizer over named tensors: AdamW's numbers, masters, clipping, schedules, and a state that restores to the bit."""

import math

import pytest
import torch
from torch import nn

from tunesmith.errors import UserError
from tunesmith.step.optim import Optimizer, learning_rate

KINDS = ["adamw", "adamw_8bit"]
DTYPES = [torch.float32, torch.bfloat16]


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return {"large": nn.Parameter(torch.randn(80, 64, dtype=dtype)), "b": nn.Parameter(torch.randn(7, dtype=dtype))}


def give(parameters, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters.values():
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)


def optimizer_of(parameters, kind="adamw", ratios=None, weight_decay=0.1):
    return Optimizer(parameters, kind, weight_decay=weight_decay, ratios=ratios or {})


def run(parameters, optimizer, steps, first=0, rate=1e-2):
    for step in range(first, first + steps):
        give(parameters, step)
        optimizer.gather()
        optimizer.clip(1.0)
        optimizer.step(rate)


def test_it_is_adamw():
    ours, theirs = tensors(), tensors()
    run(ours, optimizer_of(ours), 10)
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=False)
    for step in range(10):
        give(theirs, step)
        nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_bf16_tensors_have_fp32_masters_and_are_rounded_from_them():
    """Small steps add up in the master; in bf16 alone each of them would be lost."""
    parameters = {"w": nn.Parameter(torch.ones(5, dtype=torch.bfloat16))}
    optimizer = optimizer_of(parameters, weight_decay=0.0)
    assert optimizer.masters["w"].dtype == torch.float32 and optimizer.masters["w"] is not parameters["w"]
    seen = []
    for _ in range(8):
        parameters["w"].grad = torch.ones(5, dtype=torch.bfloat16)
        optimizer.gather()
        optimizer.step(1e-3)
        seen.append(parameters["w"][0].item())
        assert torch.equal(parameters["w"], optimizer.masters["w"].bfloat16())
    assert seen[0] == 1.0 and optimizer.masters["w"][0].item() == pytest.approx(1 - 8e-3, rel=1e-4) and seen[-1] < 1.0
    fp32 = tensors()
    assert optimizer_of(fp32).masters["large"] is fp32["large"]


def test_gradients_of_several_rows_are_added_in_fp32():
    parameters = {"w": nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))}
    optimizer = optimizer_of(parameters)
    for value in [256.0, *[0.5] * 8]:  # each half would vanish beside 256 in bf16
        parameters["w"].grad = torch.tensor([value], dtype=torch.bfloat16)
        optimizer.gather()
        assert parameters["w"].grad is None
    assert optimizer.gradient_of("w").item() == 260.0


def test_gradient_of_is_where_the_heads_gradient_is_added():
    parameters = tensors()
    optimizer = optimizer_of(parameters)
    optimizer.gradient_of("large").add_(2.0)
    parameters["large"].sum().backward()
    optimizer.gather()
    assert torch.equal(optimizer.gradient_of("large"), torch.full((80, 64), 3.0))
    optimizer.forget()
    assert parameters["large"].grad is None and optimizer.gradient_of("large").abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("largest", [0.5, 1e6, 0.0])
def test_clip_against_torch(dtype, largest):
    ours, theirs = tensors(dtype), tensors(torch.float32)
    optimizer = optimizer_of(ours)
    give(ours, 0, scale=3.0)
    for name in ours:
        theirs[name].grad = ours[name].grad.float().clone()
    optimizer.gather()
    norm = optimizer.clip(largest)
    expected = nn.utils.clip_grad_norm_(theirs.values(), largest if largest else math.inf)
    torch.testing.assert_close(norm, expected)
    for name in ours:
        torch.testing.assert_close(optimizer.gradient_of(name), theirs[name].grad)


def test_clip_without_any_gradient_and_with_one_that_is_not_finite():
    parameters = tensors()
    optimizer = optimizer_of(parameters)
    assert optimizer.clip(1.0).item() == 0
    give(parameters, 0)
    parameters["b"].grad[0] = math.nan
    assert math.isnan(optimizer.clip(1.0).item())


def test_plus_ratio_gives_b_its_own_rate():
    """The first step of Adam moves every entry by its learning rate."""
    parameters = {name: nn.Parameter(torch.zeros(4)) for name in ("x.A", "x.B")}
    optimizer = optimizer_of(parameters, ratios={"x.B": 16.0}, weight_decay=0.0)
    for parameter in parameters.values():
        parameter.grad = torch.ones(4)
    optimizer.step(1e-3)
    torch.testing.assert_close(parameters["x.A"].detach(), torch.full((4,), -1e-3))
    torch.testing.assert_close(parameters["x.B"].detach(), torch.full((4,), -1.6e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_state_goes_on_to_the_bit(kind, dtype):
    parameters = tensors(dtype)
    optimizer = optimizer_of(parameters, kind, {"b": 4.0})
    run(parameters, optimizer, 5)
    trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    state = {name: value.clone() for name, value in optimizer.state().items()}
    run(parameters, optimizer, 4, first=5)

    again = tensors(dtype)
    for name, parameter in again.items():
        parameter.data.copy_(trained[name])
    other = optimizer_of(again, kind, {"b": 4.0})
    other.restore(state)
    assert all(torch.equal(again[name], trained[name]) for name in trained)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items()) and set(other.state()) == set(state)
    run(again, other, 4, first=5)
    assert all(torch.equal(again[name], parameters[name]) for name in parameters)
    assert all(torch.equal(value, optimizer.state()[name]) for name, value in other.state().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_a_state_from_before_the_first_step(dtype):
    parameters = tensors(dtype)
    optimizer = optimizer_of(parameters)
    state = {name: value.clone() for name, value in optimizer.state().items()}
    assert set(state) == (set() if dtype == torch.float32 else {"large.master", "b.master"})
    other = optimizer_of(tensors(dtype))
    other.restore(state)
    assert set(other.state()) == set(state)


def test_a_tensor_that_never_had_a_gradient_needs_no_moments():
    """The picture encoder of a model that is tuned on text."""
    parameters = tensors()
    optimizer = optimizer_of(parameters)
    parameters["large"].grad = torch.ones(80, 64)
    optimizer.step(1e-3)
    state = optimizer.state()
    assert {name.partition(".")[0] for name in state} == {"large"}
    optimizer_of(tensors()).restore(state)


def test_a_state_that_does_not_fit_is_refused():
    parameters = tensors()
    optimizer = optimizer_of(parameters)
    run(parameters, optimizer, 1)
    state = optimizer.state() | {"made up": torch.zeros(1)}
    del state["b.exp_avg"]
    with pytest.raises(UserError) as caught:
        optimizer_of(tensors()).restore(state)
    assert caught.value.problems == ("optimizer state has no b.exp_avg", "optimizer state has an unknown made up")


def test_paged_moments_need_a_gpu():
    with pytest.raises(UserError, match="paged_adamw_8bit needs a GPU"):
        optimizer_of(tensors(), "paged_adamw_8bit")


def test_numbers_in_a_state_that_are_no_tensors_are_restored_too():
    """bitsandbytes counts its steps in a plain number."""
    parameters = tensors()
    optimizer = optimizer_of(parameters)
    run(parameters, optimizer, 3)
    for state in optimizer._inner.state.values():
        state["step"] = int(state["step"])
    state = {name: value.clone() for name, value in optimizer.state().items()}
    assert state["b.step"].item() == 3
    other = optimizer_of(tensors())

    class Counting(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            for each in self.state.values():
                each["step"] = int(each["step"])

    other._inner.__class__ = Counting
    other.restore(state)
    assert [each["step"] for each in other._inner.state.values()] == [3, 3]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0, 12: 1.0, 19: 1.0}),
        ("linear", {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 19: 1 / 16}),
        ("cosine", {0: 0.25, 3: 1.0, 4: 1.0, 12: 0.5, 8: 0.5 + 0.5 * math.cos(math.pi / 4), 19: 0.5 * (1 + math.cos(math.pi * 15 / 16))}),
    ],
)
def test_schedules(schedule, values):
    for step, share in values.items():
        assert learning_rate(step, 20, 2e-4, schedule, 0.2) == pytest.approx(2e-4 * share)


def test_schedules_without_warmup_and_of_one_step():
    assert learning_rate(0, 10, 1.0, "cosine", 0.0) == 1.0
    assert learning_rate(0, 1, 1.0, "linear", 0.05) == 1.0
    rates = [learning_rate(step, 50, 1.0, "cosine", 0.1) for step in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5:] == sorted(rates[5:], reverse=True) and rates[-1] > 0
