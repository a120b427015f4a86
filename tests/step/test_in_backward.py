"""Moved in the backward pass: in fp32, with one row a step and no clipping, the ordinary optimizer to the bit."""

import math

import pytest
import torch

from tests.step.test_forward import TRUSTED
from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.errors import UserError
from tunesmith.methods import full, method
from tunesmith.methods.settings import Full
from tunesmith.step.forward import prepare
from tunesmith.step.in_backward import InBackward
from tunesmith.step.optim import Optimizer
from tunesmith.step.recompute import recompute_blocks

DOCUMENTS = some_documents([11, 5, 17, 8])
KINDS = ["adamw", "adamw_8bit"]


def made(name="llama", dtype=torch.float32, recompute=False):
    model = tiny(name).to(dtype)
    tuning = full.build(model, Full())
    method.place(model, tuning)
    forward = prepare(model, TRUSTED, "sdpa")
    if recompute:
        recompute_blocks(model)
    assert forward.head is not None
    head = next(name for name, p in tuning.parameters.items() if p is forward.head.weight_VC)
    tied = head if model.get_input_embeddings().weight is forward.head.weight_VC else None
    return forward, tuning, head, tied


def ordinary(kind, tuning, head, tied, **_):
    return Optimizer(tuning.parameters, kind, weight_decay=0.1, ratios={head: 2.0})


def in_backward(kind, tuning, head, tied, clip=0.0, seed=0):
    return InBackward(tuning.parameters, kind, weight_decay=0.1, ratios={head: 2.0}, clip=clip, seed=seed, tied_head=tied)


def run(forward, optimizer, head, steps, first=0, clip=0.0):
    norms = []
    for step in range(first, first + steps):
        optimizer.begin(step, 1e-2)
        loss = forward.loss(make_row(DOCUMENTS, [step % 4, (step + 1) % 4]), 0.1, optimizer.gradient_of(head))
        loss.backward()
        optimizer.gather()
        norms.append(optimizer.clip(clip).item())
        optimizer.step(1e-2)
    return norms


def both(kind, name="llama", **settings):
    found = []
    for make in (ordinary, in_backward):
        forward, tuning, head, tied = made(name, **settings)
        optimizer = make(kind, tuning, head, tied)
        norms = run(forward, optimizer, head, 4)
        found.append((norms, {n: p.detach().clone() for n, p in tuning.parameters.items()}, optimizer.state()))
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])  # gemma2's and gpt2's heads are their embeddings
def test_it_is_the_ordinary_optimizer_to_the_bit(name, kind, recompute):
    (norms, plain, state), (our_norms, ours, our_state) = both(kind, name, recompute=recompute)
    assert all(torch.equal(ours[key], value) for key, value in plain.items())
    assert our_norms == pytest.approx(norms, rel=1e-5)
    assert our_state.keys() == state.keys() and all(torch.equal(our_state[key], value) for key, value in state.items())


def test_no_two_gradients_stand_at_once():
    forward, tuning, head, tied = made()
    optimizer, largest = in_backward("adamw", tuning, head, tied), 0
    inner = optimizer._move

    def watched(name, gradient):
        nonlocal largest
        largest = max(largest, sum(p.grad is not None for p in tuning.parameters.values()) + len(optimizer._from_loss))
        inner(name, gradient)

    optimizer._move = watched
    run(forward, optimizer, head, 1)
    assert largest == 0, "what is moved has been taken out already, and nothing else has a gradient"
    assert all(p.grad is None for p in tuning.parameters.values())


def test_an_untied_head_is_moved_first_and_a_tied_one_last():
    for name, place in (("llama", 0), ("gemma2", -1)):
        forward, tuning, head, tied = made(name)
        optimizer = in_backward("adamw", tuning, head, tied)
        order: list[str] = []
        inner = optimizer._move

        def watched(name, gradient, inner=inner, order=order):
            order.append(name)
            inner(name, gradient)

        optimizer._move = watched
        run(forward, optimizer, head, 1)
        assert order[place] == head and len(order) == len(set(order)) == len(tuning.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_each_tensors_gradient_is_clipped_by_itself_and_the_norm_is_of_all_before(kind):
    forward, tuning, head, tied = made()
    optimizer = in_backward(kind, tuning, head, tied, clip=1e-3)
    forward_plain, tuning_plain, head_plain, _ = made()
    plain = ordinary("adamw", tuning_plain, head_plain, None)
    loss = forward_plain.loss(make_row(DOCUMENTS, [0, 1]), 0.1, plain.gradient_of(head_plain))
    loss.backward()
    gradients = {name: plain.gradient_of(name) for name in tuning_plain.parameters}
    norms = run(forward, optimizer, head, 1)
    assert norms[0] == pytest.approx(math.sqrt(sum(g.square().sum().item() for g in gradients.values())), rel=1e-5)
    state = optimizer.state()
    if kind == "adamw":  # the first moment is a tenth of the clipped gradient
        for name, gradient in gradients.items():
            expected = 0.1 * gradient * min(1.0, 1e-3 / (gradient.norm().item() + 1e-6))
            torch.testing.assert_close(state[f"{name}.exp_avg"], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_state_goes_on_to_the_bit(kind, dtype):
    forward, tuning, head, tied = made(dtype=dtype)
    optimizer = in_backward(kind, tuning, head, tied, clip=1.0)
    run(forward, optimizer, head, 3)
    trained = {name: p.detach().clone() for name, p in tuning.parameters.items()}
    state = {name: value.clone() for name, value in optimizer.state().items()}
    run(forward, optimizer, head, 3, first=3)

    again, tuned_again, head, tied = made(dtype=dtype)
    for name, p in tuned_again.parameters.items():
        p.data.copy_(trained[name])
    other = in_backward(kind, tuned_again, head, tied, clip=1.0)
    other.restore(state)
    run(again, other, head, 3, first=3)
    assert all(torch.equal(tuned_again.parameters[name], p) for name, p in tuning.parameters.items())


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_without_a_master_follows_the_one_with_it(kind):
    """Steps far below a bf16 number's spacing add up on average; rounded to the nearest they would all be lost."""

    def moved(optimizer, parameter, rate):
        start = parameter.detach().float().clone()
        for step in range(200):
            optimizer.begin(step, rate)
            (parameter * 1.0).sum().backward()
            optimizer.gather()
            optimizer.clip(0.0)
            optimizer.step(rate)
        return (parameter.detach().float() - start).mean().item()

    parameters = [torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(2)]
    ours = InBackward({"w": parameters[0]}, kind, weight_decay=0.0, ratios={}, clip=0.0, seed=0)
    theirs = Optimizer({"w": parameters[1]}, kind, weight_decay=0.0, ratios={})
    expected = moved(theirs, parameters[1], 1e-4)
    assert expected == pytest.approx(-0.02, rel=0.2)
    assert moved(ours, parameters[0], 1e-4) == pytest.approx(-0.02, rel=0.05)


def test_another_seed_rounds_otherwise_and_fp32_knows_no_seed():
    def after(dtype, seed):
        forward, tuning, head, tied = made(dtype=dtype)
        run(forward, in_backward("adamw", tuning, head, tied, seed=seed), head, 2)
        return torch.cat([p.detach().flatten().float() for p in tuning.parameters.values()])

    assert not torch.equal(after(torch.bfloat16, 1), after(torch.bfloat16, 2))
    assert torch.equal(after(torch.float32, 1), after(torch.float32, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_whose_gradient_is_not_finite_stays_as_it_is(kind):
    parameters = {"good": torch.nn.Parameter(torch.ones(80, 64)), "bad": torch.nn.Parameter(torch.ones(80, 64))}
    optimizer = InBackward(parameters, kind, weight_decay=0.1, ratios={}, clip=1.0, seed=0)
    optimizer.begin(0, 1e-2)
    (parameters["good"].sum() + parameters["bad"].sum() * math.inf).backward()
    assert not math.isfinite(optimizer.clip(1.0).item())
    optimizer.forget()
    assert torch.equal(parameters["bad"], torch.ones(80, 64)) and (parameters["good"] < 1).all()
    assert all(value.float().abs().max() <= 1 for name, value in optimizer.state().items() if name.startswith("bad") and "step" not in name)


def test_outside_a_step_gradients_are_left_alone():
    forward, tuning, head, tied = made()
    before = {name: p.detach().clone() for name, p in tuning.parameters.items()}
    in_backward("adamw", tuning, head, tied)
    forward.loss(make_row(DOCUMENTS, [0]), 0.1).backward()
    assert all(torch.equal(p, before[name]) for name, p in tuning.parameters.items())
    assert any(p.grad is not None for p in tuning.parameters.values())


def test_a_state_that_does_not_fit_is_refused():
    _, tuning, head, tied = made()
    optimizer = in_backward("adamw", tuning, head, tied)
    name = next(iter(tuning.parameters))
    with pytest.raises(UserError, match=r"has no .*exp_avg"):
        optimizer.restore({f"{name}.step": torch.zeros(())})
