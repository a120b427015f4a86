"""LoRA that begins with what NF4 rounded away. The factors are judged in `test_decompose.py`, the module in `test_pissa.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tests.tiny_models import some_ids, tiny
from tunesmith import events
from tunesmith.cli import main
from tunesmith.errors import Interrupted, UserError
from tunesmith.methods import method, pissa
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.matrix import matrix
from tunesmith.train import loop
from tunesmith.tuned import open_tuned

IDS = some_ids(12)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("llama")
    tiny("llama").save_pretrained(found)
    return found


@pytest.fixture
def base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Over NF4; without a tokenizer, which nobody asks for here."""
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)
    return loading.load(folder, dtype=torch.float32, quantize=True)


def begun(base: Any, folder: Path, **settings: Any) -> Any:
    chosen = Settings(init="loftq", **settings)
    tuning = method.build(base.model, chosen, quantized=True)

    def dense(path: str) -> torch.Tensor:
        return matrix(folder, path, base.model)

    method.begin(tuning, Start(base.model, None, 0, dense), chosen)
    method.settle(base.model, tuning, dense)
    return tuning


@pytest.mark.parametrize("settings", [{}, {"alpha": 2.0, "loftq_iterations": 3}], ids=str)
def test_the_start_is_nearer_to_the_model_than_its_codes_are(base, folder, settings):
    original, rounded = tiny("llama")(IDS).logits, base.model(IDS).logits
    tuning = begun(base, folder, rank=8, **settings)
    for path, update in pissa.updates(tuning.adapter).items():
        weight = matrix(folder, path, base.model)
        left, plain = ((found - weight).norm() for found in (update.folded(weight), base.model.get_submodule(path).dequantized()))
        assert left < 0.9 * plain
    method.place(base.model, tuning)
    assert (base.model(IDS).logits - original).norm() < 0.9 * (rounded - original).norm()
    slots.lift(base.model, tuning.adapter)
    assert torch.equal(base.model(IDS).logits, rounded), "the base, exactly"


def test_more_iterations_leave_less(base, folder):
    errors = []
    for iterations in (1, 4):
        tuning = begun(base, folder, rank=8, loftq_iterations=iterations)
        errors.append(sum(update.differences["original"] for update in pissa.updates(tuning.adapter).values()))
    assert errors[1] < errors[0]


def test_an_unrounded_base_is_refused_with_the_alternatives(tiny_llama, tmp_path, capsys):
    with pytest.raises(UserError, match=r"init=loftq makes up for what NF4 rounds away.*method.name=qlora .*method.name=pissa"):
        method.build(tiny("llama"), Settings(init="loftq"), quantized=False)
    words = ["train", "--model", str(tiny_llama), "--data", str(runs.write_rows(tmp_path / "rows.jsonl")), "method.init=loftq"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "loftq" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_layers_that_stay_unrounded_begin_as_a_lora_does(base, folder):
    """Rows that are no whole blocks: nothing is taken out of such a matrix, and A and B must not both be zero."""
    path = "model.layers.0.self_attn.q_proj"
    base.model.set_submodule(path, tiny("llama").get_submodule(path))
    tuning = begun(base, folder, rank=4)
    update = pissa.updates(tuning.adapter)[path]
    assert update.rounded is None and update.A.abs().max() > 0 and update.B.abs().max() == 0
    x = torch.randn(3, 64)
    assert torch.equal(update(base.model.get_submodule(path), x), base.model.get_submodule(path)(x))


def test_a_run_is_resumed_opened_and_gone_on_from_as_what_it_was(tiny_llama, tmp_path):
    rows = runs.write_rows(tmp_path / "rows.jsonl")
    changes = {"method": {"name": "qlora", "rank": 4, "dropout": 0.1, "init": "loftq", "loftq_iterations": 2}, "train.steps": 4}
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    runs.finish(runs.settings(tiny_llama, rows, whole, changes))
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, rows, broken, changes), stop=runs.stop_after(2), tell=runs.quiet))
    list(loop.resume(broken, tell=runs.quiet))
    assert runs.steps_of(broken) == runs.steps_of(whole)
    left, right = runs.contents(broken), runs.contents(whole)
    assert left.keys() == right.keys() and [name for name in left if left[name] != right[name]] == []

    about = json.loads((whole / "adapter/tunesmith.json").read_text())["pissa"]
    assert (about["begins_with"], about["rank"], about["quantised"]) == ("rounding", 4, True)
    assert 0.02 < about["weight_difference"]["original"] < 0.12

    found = layout.settings(layout.read(whole / "adapter"), tiny("llama"))
    assert (found["name"], found["init"], found["rank"]) == ("lora", "loftq", 4)
    assert {type(module).__name__ for module in open_tuned(str(whole)).tuning.adapter.values()} == {"PiSSA"}
    changes = {"method": {"name": "qlora", "dropout": 0.1}, "train.steps": 1, "model.adapter": str(whole)}
    onward = runs.finish(runs.settings(tiny_llama, rows, tmp_path / "onward", changes))
    first = next(event for event in onward if isinstance(event, events.Step))
    assert first.loss < runs.steps_of(whole)[0]["loss"], "it goes on, it does not begin"
