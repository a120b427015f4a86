"""What is right is switched on, what is wrong or raises is off and named, and nothing is left in the run."""

import pytest
import torch

from tests.step.test_forward import ALL, DOCUMENTS, TRUSTED, tuned
from tunesmith.data.corpus.batches import make_row
from tunesmith.models import products, slots
from tunesmith.step import acceleration
from tunesmith.step.acceleration import Acceleration, of_parts, proved
from tunesmith.step.forward import prepare

ROW = make_row(DOCUMENTS, ALL)


@pytest.fixture
def run():
    model, tuning = tuned()
    method_parameters = tuning.parameters
    return model, prepare(model, TRUSTED, "sdpa"), method_parameters


def changing(model, path, change, name="wrong"):
    """An acceleration that changes what a module gives."""
    module = model.get_submodule(path)

    def on():
        object.__setattr__(module, "forward", lambda x: change(slots.own_forward(module, x)))

    return Acceleration(name, on, lambda: vars(module).pop("forward", None), 1e-4)


def test_what_gives_the_same_stays_on(run):
    model, forward, parameters = run
    parts = of_parts(model, torch.float32)
    assert [one.name for one in parts] == ["our own norms", "our own gated products", "our own rotary embedding"]
    assert proved(forward, ROW, parts, parameters) == [] and all(one.is_on for one in parts)
    assert slots.PART in vars(model.model.norm)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * 1.01


def fails(y):
    raise NotImplementedError("no kernel for this\nsecond line")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda y: y * 1.01, "relative difference"),
        (WrongGradient.apply, "relative difference"),
        (lambda y: y.detach(), "relative difference"),
        (lambda y: y * float("nan"), "inf"),
        (fails, "NotImplementedError: no kernel for this);"),
    ],
    ids=["value", "gradient", "cut off", "nan", "raises"],
)
def test_what_differs_or_raises_is_off_and_named_and_the_others_stay_on(run, change, said):
    model, forward, parameters = run
    wrong = changing(model, "model.layers.1.input_layernorm", change)
    parts = [one for one in of_parts(model, torch.float32) if one.name != "our own norms"]
    [sentence] = proved(forward, ROW, [parts[0], wrong, parts[1]], parameters)
    assert sentence.startswith("wrong ") and said in sentence and "the plain way is taken" in sentence
    assert [wrong.is_on, parts[0].is_on, parts[1].is_on] == [False, True, True]
    assert "forward" not in vars(model.model.layers[1].input_layernorm)


def test_nothing_is_left_in_the_run(run):
    model, forward, parameters = run
    versions = {name: parameter._version for name, parameter in parameters.items()}
    calls, state = [], torch.random.get_rng_state()
    for parameter in parameters.values():
        parameter.register_post_accumulate_grad_hook(lambda parameter: calls.append(1))  # an optimizer's, say
    noisy = changing(model, "model.layers.0.input_layernorm", lambda y: y + 0 * torch.randn(1))
    assert proved(forward, ROW, [noisy], parameters) == []
    assert not calls and all(parameter.grad is None for parameter in parameters.values())
    assert versions == {name: parameter._version for name, parameter in parameters.items()}
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_gradient_that_is_rounding_alone_condemns_nothing():
    plain = {"loss": torch.tensor(1.0), "a": torch.ones(10), "bias": torch.full((10,), 1e-9)}
    found = plain | {"bias": torch.full((10,), -3e-9)}
    assert acceleration._worst(found, plain)[1] < 1e-6
    assert acceleration._worst(plain | {"a": torch.ones(10) * 1.01}, plain) == ("a", pytest.approx(0.01, rel=0.2))
    assert acceleration._worst({"loss": plain["loss"]}, plain)[1] == float("inf")


def test_a_first_batch_that_is_not_finite_proves_nothing(run):
    model, forward, parameters = run
    next(iter(parameters.values())).data.fill_(float("nan"))
    parts = of_parts(model, torch.float32)
    [sentence] = proved(forward, ROW, parts, parameters)
    assert "not finite" in sentence and not any(one.is_on for one in parts)


def test_of_more_tensors_than_the_budget_some_of_every_depth_are_compared(monkeypatch):
    parameters = {str(i): torch.zeros(100, requires_grad=True) for i in range(30)} | {"frozen": torch.zeros(5)}
    assert list(acceleration._watched(parameters)) == [str(i) for i in range(30)]
    monkeypatch.setattr(acceleration, "BUDGET_BYTES", 4000)
    assert list(acceleration._watched(parameters)) == ["0", "3", "6", "9", "12", "15", "18", "21", "24", "27"]


def test_products_of_updates_are_off_until_they_are_proved_and_a_wrong_one_stays_off(run, monkeypatch):
    model, forward, parameters = run
    modules = [module for module in slots.placed(model).values() if hasattr(module, "low_rank")]
    (one,) = acceleration.of_updates(model, torch.float32)
    assert modules and all(module.plain for module in modules) and not one.is_on
    assert proved(forward, ROW, [one], parameters) == [] and one.is_on and not any(module.plain for module in modules)
    (wrong,) = acceleration.of_updates(model, torch.float32)
    plain = products.thin
    monkeypatch.setattr(products, "thin", lambda *inputs: plain(*inputs).mul_(1.01))
    (said,) = proved(forward, ROW, [wrong], parameters)
    assert "our own products of low-rank updates give something else" in said and all(module.plain for module in modules)


def test_a_model_without_low_rank_updates_has_no_products_of_them(run):
    model, _, _ = run
    slots.lift(model, dict(slots.placed(model)))
    assert acceleration.of_updates(model, torch.float32) == []
