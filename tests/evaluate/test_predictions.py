"""Scores of runs with a head."""

import json
import math

import pytest
import torch

from tests.headed import TAGS, headed, marked, texts
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError
from tunesmith.evaluate import predictions as module
from tunesmith.evaluate.evaluate import evaluate
from tunesmith.evaluate.evaluation import record
from tunesmith.evaluate.predict import Predicted

LABELS = ["no", "perhaps", "yes"]


@pytest.fixture
def says(monkeypatch):
    """Makes the head predict given labels, each with probability 0.8."""

    def script(tuned, *rows):
        count = len(tuned.head.labels)

        def predict(asked, fed, *, on_progress=None):
            assert asked is tuned
            made = []
            for each, numbers in zip(fed, rows, strict=True):
                logp_PL = torch.full((len(each.positions), count), math.log(0.2 / (count - 1)))
                for place, number in enumerate(numbers):
                    logp_PL[place, number] = math.log(0.8)
                made.append(Predicted(each, logp_PL))
            return made

        monkeypatch.setattr(module, "predict", predict)

    return script


def test_texts_are_scored_by_label(tiny_llama, says):
    tuned = headed(tiny_llama, "classify", LABELS)
    says(tuned, [2], [0], [1], [0])
    result = evaluate(tuned, texts(("good", "yes"), ("bad", "no"), ("so so", "yes"), ("awful", "no")))
    assert result.scores["accuracy"] == 0.75 and result.scores["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert result.scores["loss"] == pytest.approx(-(3 * math.log(0.8) + math.log(0.1)) / 4) and "perplexity" not in result.scores
    assert result.learned_tokens == 4 and result.unfinished == 0 and set(result.intervals) == {"accuracy", "macro_f1"}
    assert result.confusion is not None and result.confusion.counts_LL == [[2, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert record(result.rows[2]) == {
        "origin": "f:3", "prompt": "so so", "reference": "yes", "prediction": "perhaps",
        "scores": {"accuracy": 0.0, "macro_f1": 0.0}, "stopped": True, "probabilities": {"perhaps": 0.8, "no": 0.1, "yes": 0.1},
    }  # fmt: skip


def test_labels_that_differ_in_a_capital_alone_are_not_one(tiny_llama, says):
    tuned = headed(tiny_llama, "classify", ["it", "IT"])
    says(tuned, [0], [0])
    assert evaluate(tuned, texts(("a", "IT"), ("b", "it"))).scores["accuracy"] == 0.5


def test_words_are_scored_by_entity(tiny_llama, says):
    tuned = headed(tiny_llama, "tag", TAGS)
    says(tuned, [3, 4, 0, 1], [1, 0])
    samples = [marked("Ann Lee saw Rome", (0, 7, "PER"), (12, 16, "LOC")), marked("Oslo calls", (0, 4, "PER"), line=2)]
    result = evaluate(tuned, samples)
    assert result.scores["entity_f1"] == pytest.approx(2 / 3) and result.scores["entity_f1.LOC"] == pytest.approx(2 / 3)
    assert result.scores["entity_f1.PER.recall"] == 0.5 and result.learned_tokens == 6 and result.confusion is None
    first, second = map(record, result.rows)
    assert json.loads(first["prediction"]) == json.loads(first["reference"]) == {"PER": ["Ann Lee"], "LOC": ["Rome"]}
    assert first["entities"] == ((0, 7, "PER"), (12, 16, "LOC")) and first["scores"] == {"entity_f1": 1.0}
    assert (second["prediction"], second["reference"]) == ('{"LOC":["Oslo"]}', '{"PER":["Oslo"]}')


def test_half_a_word_that_is_marked_cannot_be_found(tiny_llama, says):
    tuned = headed(tiny_llama, "tag", TAGS)
    says(tuned, [1, 0])
    assert evaluate(tuned, [marked("Romeo calls", (0, 4, "LOC"))]).scores["entity_f1"] == 0


def test_the_real_path(tiny_llama):
    """Nothing replaced: what the tiny head predicts is its own reference."""
    tuned = headed(tiny_llama, "classify", LABELS)
    asked = texts(("one", "no"), ("two", "no"), ("another", "no"))
    first = evaluate(tuned, asked)
    again = evaluate(tuned, texts(*[(row.prompt, row.prediction) for row in first.rows]))
    assert again.scores["accuracy"] == 1 and again.scores["loss"] < math.log(3)
    assert [row.probabilities for row in again.rows] == [row.probabilities for row in first.rows]


def test_metrics_that_say_nothing_of_labels_are_refused(tiny_llama):
    tuned = headed(tiny_llama, "tag", TAGS)
    with pytest.raises(UserError, match=r"chrf, accuracy: a run of task\.name=tag is scored by loss, entity_f1"):
        evaluate(tuned, [marked("Rome", (0, 4, "LOC"))], metrics=["chrf", "accuracy", "loss"])
    with pytest.raises(UserError, match="no rows"):
        evaluate(tuned, [])


def test_only_the_named_metrics(tiny_llama):
    tuned = headed(tiny_llama, "classify", LABELS)
    result = evaluate(tuned, texts(("a", "no")), metrics=["loss"])
    assert set(result.scores) == {"loss"} and result.confusion is None
    result = evaluate(tuned, texts(("a", "no")), metrics=["confusion"])
    assert result.scores == {} and result.confusion is not None and sum(map(sum, result.confusion.counts_LL)) == 1


def test_rows_without_a_label_that_the_head_knows_are_named_together(tiny_llama):
    tuned = headed(tiny_llama, "classify", LABELS)
    with pytest.raises(UserError) as caught:
        evaluate(tuned, [*texts(("a", "no"), ("b", "maybe")), Sample("f:3", text="raw")])
    assert "label 'maybe' is none of the 3" in caught.value.problems[0] and caught.value.problems[0].startswith("f:2: ")
    assert caught.value.problems[1].startswith("f:3: ") and "task.name=classify" in caught.value.problems[-1]
