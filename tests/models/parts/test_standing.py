"""Parts in whole models of many families: the same loss and gradients, nothing left behind, and what is kept by count."""

# mypy: disable-error-code="func-returns-value"

import copy

import pytest
import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.methods import method
from tunesmith.methods.settings import Adapter, DoRA, LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.models.parts import recipes, standing
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare

ROW = make_row(some_documents([11, 5, 17, 8]), [0, 1, 2, 3])
TOKENS = 41
# how many of each part stand in two blocks and behind them
STAND = {
    "llama": {"norm": 5, "gated": 2, "rotary": 2},
    "qwen3": {"norm": 9, "gated": 2, "rotary": 2},
    "gemma2": {"norm": 9, "gated": 2, "rotary": 2},
    "gemma3": {"norm": 13, "gated": 2, "rotary": 2},
    "phi3": {"norm": 5, "gated": 2, "rotary": 2},
    "phi": {"layer_norm": 3, "activation": 2, "rotary": 2},
    "gpt2": {"layer_norm": 5, "activation": 2},
    "opt": {"layer_norm": 5},
    "granite": {"norm": 5, "gated": 2, "rotary": 2},
    "cohere": {"gated": 2},
    "mixtral": {"norm": 5, "activation": 2, "rotary": 2},
    "lfm2": {"norm": 7, "gated": 2, "rotary": 1},
    "gptj": {"layer_norm": 3, "activation": 2},
}


def tuned(name, settings=None):
    """A miniature with an adapter of drawn values, or tuned whole, and what is trained."""
    model = tiny(name)
    if settings is None:
        return model, dict(model.named_parameters())
    tuning = method.build(model, settings, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight), settings)
    torch.manual_seed(0)
    for name, parameter in tuning.parameters.items():
        if not name.endswith("magnitude"):
            parameter.data.normal_(std=0.1)
    method.place(model, tuning)
    return model, tuning.parameters


def gradients(model, parameters, remember=False):
    """Loss and gradients of one row, and the bytes of what was exchanged for recipes."""
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    for parameter in parameters.values():
        parameter.requires_grad_(True).grad = None
    saved = 0
    if remember:
        with recipes.remembered() as book:
            loss = forward.loss(ROW)
            saved = sum(recipe.bytes for recipe in book.recipes.values() if recipe.users)
    else:
        loss = forward.loss(ROW)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}, saved


def stand(model):
    found = standing.recognised(model, torch.float32)
    for forwards in found.values():
        standing.stand(model, forwards)
    return found


@pytest.mark.parametrize("name", STAND)
def test_parts_are_recognised_and_every_gradient_is_the_classs(name):
    model, parameters = tuned(name)
    plain, _ = gradients(model, parameters)
    found = stand(model)
    assert {part: len(forwards) for part, forwards in found.items()} == STAND[name]
    ours, _ = gradients(model, parameters)
    again, _ = gradients(model, parameters, remember=True)
    assert ours.keys() == plain.keys() == again.keys()
    largest = max(gradient.norm() for name, gradient in plain.items() if name != "loss")
    for key, expected in plain.items():
        assert (ours[key] - expected).norm() <= 1e-5 * max(expected.norm(), 0.01 * largest), key
        assert torch.equal(again[key], ours[key]), key  # made again to the bit


def test_they_leave_nothing_behind():
    model = tiny("llama")
    before, state = copy.deepcopy([dict(vars(module)) for module in model.modules()]), list(model.state_dict())
    found = stand(model)
    assert any("forward" in vars(module) for module in model.modules()) and list(model.state_dict()) == state
    for forwards in found.values():
        standing.step_aside(model, forwards)
        standing.step_aside(model, forwards)  # again is no harm
    assert [sorted(vars(module)) for module in model.modules()] == [sorted(one) for one in before]


def test_other_models_of_the_class_are_not_touched():
    one, other = tiny("llama"), tiny("llama")
    stand(one)
    assert not any("forward" in vars(module) for module in other.modules())


@pytest.mark.parametrize("settings", [Adapter(variant="houlsby"), Adapter(variant="parallel")])
def test_behind_an_adapter_at_the_same_module_the_part_is_what_the_adapter_adds_to(settings):
    model, parameters = tuned("llama", settings)
    plain, _ = gradients(model, parameters)
    found = stand(model)
    ours, _ = gradients(model, parameters)
    for key, expected in plain.items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    mlp = model.model.layers[0].mlp
    calls, part = [], found["gated"]["model.layers.0.mlp"]
    object.__setattr__(mlp, slots.PART, lambda x: calls.append(1) or part(x))
    gradients(model, parameters)
    assert calls


@pytest.mark.parametrize(("name", "widths"), [("llama", (64, 128)), ("phi3", (64, 128)), ("gpt2", (64, 256))])
@pytest.mark.parametrize("settings", [LoRA(), DoRA()], ids=["lora", "dora"])
def test_what_is_not_kept_is_every_norms_and_every_products_output(name, widths, settings):
    """Two blocks: of the first no norm's input has a gradient before its attention, so nobody but the products keeps it."""
    model, parameters = tuned(name, settings)
    stand(model)
    plain, _ = gradients(model, parameters)
    again, saved = gradients(model, parameters, remember=True)
    channels, inner = widths
    assert saved == 4 * TOKENS * (3 * channels + 2 * inner)
    assert all(torch.equal(again[key], plain[key]) for key in plain)
