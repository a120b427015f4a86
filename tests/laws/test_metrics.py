"""What every metric on the shelf must keep."""

import inspect
import random

import pytest

from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.scored import Scored, difference, interval

SETS = {
    "json": ['{"a":1,"b":"x"}', '[{"k":"v"},{"k":"w"}]', '{"a":{"b":[1,2]}}', "{}", "[]"],
    "labels": ["yes", "no", "No", "maybe", "yes", "no"],
    "text": ["The cat sat on the mat.", "订单还没到。", "Zwölf Boxkämpfer", "one", "A long answer, with commas."],
}
HOSTILE = ["", " ", "\ud800", "[" * 100_000, '{"a":NaN}', '{"a":1,"a":2}', "1" * 5000, "🙂" * 50, "null", '"x"']
ONLY_JSON = {"json_valid"}  # asks for JSON even where the reference is none

metrics = pytest.mark.parametrize("name", METRICS)
kinds = pytest.mark.parametrize("kind", SETS)


@metrics
def test_a_metric_says_what_it_is(name):
    assert len(inspect.getdoc(METRICS[name]) or "") > 60
    assert METRICS[name].__name__.rpartition(".")[2] == name


@metrics
@kinds
def test_the_reference_itself_is_the_best_answer(name, kind):
    references = SETS[kind]
    if name in ONLY_JSON and kind != "json":
        assert METRICS[name].score(list(references), references).value < 1
        return
    scored = METRICS[name].score(list(references), references)
    assert scored.value == 1 and scored.per_row == [1.0] * len(references)
    assert interval(scored) == (1.0, 1.0)


@metrics
@kinds
def test_no_answer_at_all_is_the_worst(name, kind):
    assert METRICS[name].score(["§"] * len(SETS[kind]), SETS[kind]).value == 0


@metrics
@kinds
def test_values_lie_between_0_and_1_whatever_a_model_says(name, kind):
    references = [reference for reference in SETS[kind] for _ in HOSTILE]
    scored: Scored = METRICS[name].score(HOSTILE * len(SETS[kind]), references)
    assert 0 <= scored.value <= 1
    assert len(scored.per_row) == len(references) and all(0 <= value <= 1 for value in scored.per_row)
    assert all(0 <= value <= 1 for value in scored.also.values())
    low, high = interval(scored)
    assert 0 <= low <= scored.value <= high <= 1


@metrics
@kinds
def test_the_order_of_rows_does_not_matter_and_rows_are_scored_by_themselves(name, kind):
    references = SETS[kind]
    predictions = references[1:] + references[:1]
    predictions[0] = references[0]
    order = list(range(len(references)))
    random.Random(0).shuffle(order)
    scored = METRICS[name].score(predictions, references)
    mixed = METRICS[name].score([predictions[i] for i in order], [references[i] for i in order])
    assert mixed.value == pytest.approx(scored.value, abs=1e-12)
    assert mixed.per_row == [scored.per_row[i] for i in order]
    twice = METRICS[name].score(predictions * 2, references * 2)
    assert twice.value == pytest.approx(scored.value, abs=1e-12)
    assert difference(scored, scored) == (0, (0, 0))


@metrics
def test_unequal_lengths_and_no_rows_are_refused(name):
    with pytest.raises(ValueError, match="zip"):
        METRICS[name].score(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no rows"):
        METRICS[name].score([], [])


@metrics
def test_what_it_suits_is_a_plain_yes_or_no(name):
    assert {METRICS[name].suits(references) for references in [*SETS.values(), [], [""]]} <= {True, False}
