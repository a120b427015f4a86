"""Whole runs of tasks with a head: what they learn is scored and said; packing, recomputing and the base's form change nothing of it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.runs import finish, own_cache, settings, steps_of  # noqa: F401
from tunesmith.data.sources import load_samples
from tunesmith.errors import UserError
from tunesmith.evaluate.evaluate import evaluate
from tunesmith.evaluate.predict import predict
from tunesmith.models.load import quiet
from tunesmith.tuned import open_tuned
from tunesmith.verbs import chat, merge

NAMES, TOWNS = ["Ann", "Bob", "Zoe", "Max"], ["Rome", "Oslo", "Bonn", "Kiel"]
RATES = {"lora": 0.01, "prefix": 0.02, "full": 0.003}
TASKS = pytest.mark.parametrize("task", ["classify", "tag"])


def write(path: Path, task: str) -> Path:
    """A text is of a person or of a town, as its last word is; both are marked in it for tagging."""
    rows: list[dict[str, Any]] = []
    for number in range(24):
        name, town = NAMES[number % 4], TOWNS[number // 4 % 4]
        if task == "classify":
            rows.append({"text": f"{town} or {name}" if number % 2 else f"{name} or {town}", "label": "person" if number % 2 else "town"})
        else:
            words = [town, "or", name] if number % 2 else [name, "or", town]
            kinds = {name: "B-PER", town: "B-LOC"}
            rows.append({"tokens": words, "tags": [kinds.get(word, "O") for word in words]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_of(model: Path, folder: Path, task: str, name: str, **changes: Any) -> Any:
    data = write(folder.parent / f"{task}.jsonl", task)
    method = {"name": name} | ({"tokens": 4} if name == "prefix" else {})
    common = {"task.name": task, "train.steps": 30, "train.tokens_per_step": 128, "train.learning_rate": RATES[name], "method": method}
    return settings(model, data, folder, common | {"train.checkpoint_every": 30} | changes)


@TASKS
@pytest.mark.parametrize("name", RATES)
def test_a_run_learns_is_scored_and_answers(tiny_llama, tmp_path, monkeypatch, capsys, task, name):
    finish(run_of(tiny_llama, tmp_path / "run", task, name))
    tuned = open_tuned(str(tmp_path / "run"))
    assert tuned.head is not None and tuned.head.task == task
    result = evaluate(tuned, samples_of(tmp_path, task))
    losses = [step["loss"] for step in steps_of(tmp_path / "run")]
    assert losses[-1] < 0.3 * losses[0] and result.scores["loss"] < 0.3 * losses[0]
    assert result.scores["accuracy" if task == "classify" else "entity_f1"] > 0.9
    monkeypatch.setattr(sys, "stdin", io.StringIO("Max or Bonn\n"))
    assert chat.label(tuned, chat.lines("")) == 0
    said = capsys.readouterr().out
    assert said.startswith("town ") if task == "classify" else json.loads(said) == {"PER": ["Max"], "LOC": ["Bonn"]}


def samples_of(folder: Path, task: str) -> list[Any]:
    samples, _ = load_samples(str(folder / f"{task}.jsonl"))
    return list(samples)


@TASKS
def test_packed_or_not_and_recomputed_or_not_the_losses_are_the_same(tiny_llama, tmp_path, task):
    changes: dict[str, dict[str, Any]] = {"packed": {}, "alone": {"data.pack": False}, "recomputed": {"train.recompute": "blocks"}}
    found = {}
    for kind, change in changes.items():
        finish(run_of(tiny_llama, tmp_path / kind, task, "lora", **{"train.steps": 4} | change))
        found[kind] = [step["loss"] for step in steps_of(tmp_path / kind)]
    for kind in ("alone", "recomputed"):
        assert found[kind] == pytest.approx(found["packed"], rel=1e-4)


@pytest.mark.parametrize(("task", "change"), [("classify", {"model.quantize": "nf4"}), ("tag", {"model.dtype": "bfloat16"})])
def test_over_other_bases(tiny_llama, tmp_path, task, change):
    finish(run_of(tiny_llama, tmp_path / "run", task, "lora", **{"train.steps": 20} | change))
    losses = [step["loss"] for step in steps_of(tmp_path / "run")]
    result = evaluate(open_tuned(str(tmp_path / "run")), samples_of(tmp_path, task))
    assert losses[-1] < 0.7 * losses[0] and result.scores["loss"] < 0.7 * losses[0]


def test_a_run_goes_on_from_an_adapter_with_its_head(tiny_llama, tmp_path):
    finish(run_of(tiny_llama, tmp_path / "first", "classify", "lora"))
    again = run_of(tiny_llama, tmp_path / "second", "classify", "lora", **{"model.adapter": str(tmp_path / "first"), "train.steps": 2})
    finish(again)
    last, first = steps_of(tmp_path / "first")[-1]["loss"], steps_of(tmp_path / "second")[0]["loss"]
    assert first < 0.3 and last < 0.3, "what was learned is there from the first step on"
    with pytest.raises(UserError, match=r"has a head for task\.name=classify"):
        finish(run_of(tiny_llama, tmp_path / "third", "tag", "lora", **{"model.adapter": str(tmp_path / "first")}))


def test_label_words_are_learned_as_answers_and_told_apart_by_likelihood(tiny_llama, tmp_path):
    finish(run_of(tiny_llama, tmp_path / "words", "classify", "lora", **{"task.head": "words", "train.steps": 60}))
    tuned = open_tuned(str(tmp_path / "words"))
    assert tuned.head is None and tuned.run is not None and tuned.run.task.labels == ["person", "town"]
    result = evaluate(tuned, samples_of(tmp_path, "classify"), labels=tuned.run.task.labels)
    assert result.scores["accuracy"] > 0.9 and result.confusion is not None and result.confusion.other_L == [0, 0]


@pytest.mark.parametrize(("task", "change"), [("classify", {}), ("tag", {"model.quantize": "nf4"})])
def test_a_merged_run_is_the_run_and_opens_in_transformers(tiny_llama, tmp_path, task, change):
    finish(run_of(tiny_llama, tmp_path / "run", task, "lora", **{"train.steps": 10} | change))
    assert merge.merge_run(tmp_path / "run", tmp_path / "merged", None) == 0
    facts = json.loads((tmp_path / "merged" / "merge.json").read_text())
    if not change:
        assert facts["difference_from_adapter"]["largest_logit_difference"] < 1e-4
    tuned = open_tuned(str(tmp_path / "merged"))
    before = open_tuned(str(tmp_path / "run")).head
    assert tuned.head is not None and before is not None and tuned.head.about == before.about
    auto = {"classify": transformers.AutoModelForSequenceClassification, "tag": transformers.AutoModelForTokenClassification}[task]
    with quiet():
        judge, told = auto.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    renderer: Any = tuned.renderer
    fed = renderer.feed(renderer.sample("Max or Bonn"))
    [found] = predict(tuned, [fed])
    with torch.no_grad():
        logits = judge(input_ids=torch.tensor([fed.ids])).logits[0]
    expected = logits[list(fed.positions)] if task == "tag" else logits[None]
    torch.testing.assert_close(found.logp_PL, expected.log_softmax(-1), rtol=1e-4, atol=1e-4)
