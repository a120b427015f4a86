"""Law: every method works with each task: it learns, goes on to the bit, and what is opened again is what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from tests.laws.test_every_method import METHOD
from tests.runs import own_cache  # noqa: F401
from tunesmith import events
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.sources import load_samples
from tunesmith.errors import Interrupted
from tunesmith.evaluate.evaluate import evaluate
from tunesmith.evaluate.predict import predict
from tunesmith.methods.method import METHODS
from tunesmith.train import loop
from tunesmith.tuned import open_tuned

TEXTS = ["ab", "cd", "ef", "gh", "ij", "kl", "mn"]
TASKS = ("classify", "tag")


def write_rows(path: Path, task: str, count: int) -> Path:
    """Texts whose label stands in them, or whose words in capitals are entities."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        first, second = TEXTS[i % 7], TEXTS[(i * 3 + 1) % 7]
        kind = "good" if i % 2 else "bad"
        if task == "classify":
            rows.append({"text": f"{first} {kind} {second}", "label": kind})
        else:
            text = f"{first} {second.upper()} {first}"
            rows.append({"text": text, "spans": [{"start": 3, "end": 5, "label": "THING"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", METHODS)
def test_the_law(name: str, task: str, tiny_llama: Path, tmp_path: Path) -> None:
    rate, own = METHOD[name]
    train, held_out = write_rows(tmp_path / "rows.jsonl", task, 24), write_rows(tmp_path / "held_out.jsonl", task, 9)
    changes = {"task.name": task, "method": {"name": name} | own, "train.learning_rate": rate, "train.steps": 8}
    changes |= {"data.evaluate": str(held_out), "evaluate.every": 1, "task.class_weights": "balanced"}
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    happened = [e for e in runs.finish(runs.settings(tiny_llama, train, whole, changes)) if isinstance(e, events.Evaluated)]
    with pytest.raises(Interrupted):
        list(loop.train(runs.settings(tiny_llama, train, broken, changes), stop=runs.stop_after(4), tell=runs.quiet))
    list(loop.resume(broken, tell=runs.quiet))
    assert happened[-1].loss < happened[0].loss
    assert runs.steps_of(broken) == runs.steps_of(whole)
    left, right = runs.contents(broken), runs.contents(whole)
    assert left.keys() == right.keys() and [path for path in left if left[path] != right[path]] == []

    tuned = open_tuned(str(whole))
    assert isinstance(tuned.renderer, Labelled)
    samples, _ = load_samples(str(held_out))
    found = predict(tuned, [tuned.renderer.feed(sample) for sample in samples])
    documents = [document for sample in samples for document in tuned.renderer.documents(sample)]
    assert tuned.tuning.head is not None
    weights_L = tuned.tuning.head.class_weights_L
    assert weights_L is None, "weights are a matter of training"
    labelled = [(one.logp_PL, document.targets) for one, document in zip(found, documents, strict=True)]
    losses = [-logp_L[target].item() for logp_PL, targets in labelled for logp_L, target in zip(logp_PL, targets, strict=True)]
    assert len(losses) == happened[-1].learned_tokens
    scores = evaluate(tuned, samples).scores
    assert scores["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert ("accuracy" if task == "classify" else "entity_f1") in scores
