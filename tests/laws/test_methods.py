"""What every method on the shelf must keep, over every base that it says it trains over."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import Plan
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.load import Base
from tunesmith.models.matrix import matrix
from tunesmith.models.proof import Proof
from tunesmith.step.forward import Forward, prepare
from tunesmith.step.optim import Optimizer

BASES = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "nf4": (torch.float32, True)}
RATE = {
    "full": 2e-3, "freeze": 4e-3, "lora": 1e-2, "dora": 1e-2, "pissa": 1e-2, "prompt": 1e-1, "ptuning": 1e-2, "prefix": 1e-2,
    "ptuning_v2": 1e-1, "adapter": 1e-2,
}  # fmt: skip

methods = pytest.mark.parametrize("name", METHODS)
SERVED = [(name, base) for name in METHODS for base, (_, quantized) in BASES.items() if METHODS[name].NF4 or not quantized]
served = pytest.mark.parametrize(("name", "base"), SERVED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llama")
    tiny("llama_tied").save_pretrained(found)
    return found


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch):
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)


def loaded(folder: Path, base: str) -> Base:
    dtype, quantize = BASES[base]
    return loading.load(folder, dtype=dtype, quantize=quantize)


def begun(name: str, folder: Path, base: str) -> tuple[Any, Any]:
    """Base and tuning, in place, with first values."""
    made = loaded(folder, base)
    tuning = method.build(made.model, SETTINGS[name](), quantized=made.quantized)

    def dense(path: str) -> torch.Tensor:
        return matrix(folder, path, made.model)

    method.begin(tuning, Start(made.model, None, 0, dense), SETTINGS[name]())
    method.settle(made.model, tuning, dense)
    method.place(made.model, tuning)
    return made, tuning


def learn(forward: Forward, optimizer: Optimizer, plan: Plan, steps: int, rate: float, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        rows = plan.rows(step)
        learned = sum(len(row.targets_N) for row in rows)
        total = 0.0
        for row in rows:
            assert forward.head is not None
            names = {id(parameter): key for key, parameter in optimizer.parameters.items()}
            tied = names.get(id(forward.head.weight_VC))
            loss = forward.loss(row, 1 / learned, optimizer.gradient_of(tied) if tied else None)
            loss.backward()
            optimizer.gather()
            total += loss.item()
        optimizer.clip(1.0)
        optimizer.step(rate)
        losses.append(total)
    return losses


def setup(name: str, folder: Path, base: str) -> tuple[Any, Any, Forward, Optimizer, Plan]:
    made, tuning = begun(name, folder, base)
    forward = prepare(made.model, Proof(True, True, ()), made.own_attention)
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.01, ratios=tuning.learning_rate_ratios)
    return made, tuning, forward, optimizer, Plan(some_documents([9, 14, 6, 11]), 64, 64, 0, virtual_ids=slots.virtual_ids(made.model))


@methods
def test_a_methods_file_has_what_the_shelf_needs(name):
    module = METHODS[name]
    assert module.__name__.rpartition(".")[2] == name and len(inspect.getdoc(module) or "") > 100
    assert list(inspect.signature(module.build).parameters) == ["model", "settings", "device"]
    assert list(inspect.signature(module.init).parameters) == ["tuning", "start", "settings"]
    assert isinstance(module.NF4, bool) and all(0 < rate < 1 for rate in module.LEARNING_RATES.values())
    assert SETTINGS[name].model_fields["name"].default == name


@served
def test_shapes_on_the_meta_device_are_those_of_the_run(name, base, folder):
    made, tuning = begun(name, folder, base)
    skeleton = loading.skeleton(loading.load_config(folder))
    foreseen = method.build(skeleton, SETTINGS[name](), quantized=made.quantized, device="meta")
    assert {p.device.type for p in foreseen.parameters.values()} == {"meta"}
    assert {n: tuple(p.shape) for n, p in foreseen.parameters.items()} == {n: tuple(p.shape) for n, p in tuning.parameters.items()}
    trained = [p for p in [*made.model.parameters(), *(p for m in tuning.adapter.values() for p in m.parameters())] if p.requires_grad]
    assert foreseen.count == tuning.count == sum(p.numel() for p in trained) > 0
    assert list(foreseen.adapter) == list(tuning.adapter) and foreseen.notes == tuning.notes


@methods
def test_nf4_is_trained_over_or_refused_with_a_reason(name):
    if METHODS[name].NF4:
        assert method.build(tiny("llama"), SETTINGS[name](), quantized=True).count > 0
        return
    with pytest.raises(UserError, match=f"method {name} .*NF4.*model.quantize=null"):
        method.build(tiny("llama"), SETTINGS[name](), quantized=True)


@served
def test_a_few_steps_lower_the_loss_and_touch_nothing_else(name, base, folder):
    made, tuning, forward, optimizer, plan = setup(name, folder, base)
    kept = {
        key: value.clone() for key, value in made.model.state_dict().items() if key not in tuning.parameters and key != "lm_head.weight"
    }
    before = forward.mean_loss(plan.rows(0))[0]
    losses = learn(forward, optimizer, plan, 12, RATE[name])
    after = forward.mean_loss(plan.rows(0))[0]
    assert losses[0] == pytest.approx(before, rel=0.02) and after < 0.8 * before, (before, losses, after)
    assert all(torch.equal(made.model.state_dict()[key], value) for key, value in kept.items())


@served
def test_state_and_restore_are_the_same_to_the_bit(name, base, folder):
    """Four steps and then three, as seven in one go: parameters, optimizer and losses."""
    _, tuning, forward, optimizer, plan = setup(name, folder, base)
    first = learn(forward, optimizer, plan, 4, RATE[name])
    trained = {key: value.clone() for key, value in method.state(tuning).items()}
    moments = {key: value.clone() for key, value in optimizer.state().items()}
    rest = learn(forward, optimizer, plan, 3, RATE[name], first=4)
    _, again, forward, optimizer, plan = setup(name, folder, base)
    method.restore(again, trained, "checkpoint")
    optimizer.restore(moments)
    assert all(torch.equal(value, trained[key]) for key, value in method.state(again).items())
    assert learn(forward, optimizer, plan, 3, RATE[name], first=4) == rest and len(first) == 4
    assert all(torch.equal(value, method.state(tuning)[key]) for key, value in method.state(again).items())


@methods
def test_misfits_are_listed_all_at_once(name, folder):
    _, tuning = begun(name, folder, "fp32")
    tensors = {key: torch.zeros(7, 7, 7) for key in method.state(tuning)} | {"made up": torch.zeros(1)}
    tensors.pop(next(iter(tensors)))
    found = method.misfits(tuning, tensors)
    assert len(found) == len(method.state(tuning)) + 1
    with pytest.raises(UserError, match="a file does not fit this model"):
        method.restore(tuning, tensors, "a file")


@methods
def test_an_adapter_is_lifted_without_a_trace(name, folder):
    made, tuning, forward, optimizer, plan = setup(name, folder, "fp32")
    if not tuning.adapter:
        return
    before = loaded(folder, "fp32").model(torch.arange(5)[None]).logits
    learn(forward, optimizer, plan, 2, RATE[name])
    slots.lift(made.model, tuning.adapter)
    made.model.set_attn_implementation(made.own_attention)
    assert torch.equal(made.model(torch.arange(5)[None]).logits, before)
