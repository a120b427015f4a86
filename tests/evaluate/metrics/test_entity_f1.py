import json

import pytest

from tunesmith.evaluate.metrics import entity_f1


def f1(predictions, references):
    return entity_f1.score(predictions, references)


def test_all_rows_are_counted_together():
    references = ['{"PER":["Ann","Bob"],"LOC":["Rome"]}', '{"LOC":["Oslo"]}', "{}"]
    predictions = ['{"PER":["Ann"],"LOC":["Rom"]}', '{"LOC":["Oslo"]}', '{"LOC":["x"]}']
    scored = f1(predictions, references)
    # 2 right of 4 found and 4 expected
    assert scored.value == pytest.approx(0.5) and scored.per_row == [pytest.approx(0.4), 1, 0]
    assert scored.also == {
        "precision": 0.5, "recall": 0.5,
        "LOC": pytest.approx(0.4), "LOC.precision": pytest.approx(1 / 3), "LOC.recall": 0.5,
        "PER": pytest.approx(2 / 3), "PER.precision": 1, "PER.recall": 0.5,
    }  # fmt: skip


def test_the_same_name_twice_has_to_be_found_twice():
    assert f1(['{"LOC":["Rome"]}'], ['{"LOC":["Rome","Rome"]}']).value == pytest.approx(2 / 3)


def test_places_and_types_must_both_be_right():
    reference = json.dumps([[0, 3, "PER"], [8, 12, "LOC"]])
    for found, right in (([[0, 3, "PER"], [8, 12, "PER"]], 1), ([[0, 4, "PER"], [8, 12, "LOC"]], 1), ([[8, 12, "LOC"], [0, 3, "PER"]], 2)):
        assert f1([json.dumps(found)], [reference]).value == right / 2


@pytest.mark.parametrize("said", ["B-PER I-PER O B-LOC", "I-PER I-PER O I-LOC", "B-PER E-PER O S-LOC"])
def test_tags_of_any_scheme(said):
    assert f1([said], ["B-PER I-PER O B-LOC"]).value == 1


def test_an_answer_that_says_no_entities_has_none():
    scored = f1(["Ann and Bob", "nothing"], ['{"PER":["Ann"]}', "{}"])
    assert scored.value == 0 and scored.per_row == [0, 1] and scored.also["precision"] == 0


def test_nothing_expected_and_nothing_found_is_right():
    assert f1(["O O", "[]"], ["O O O", "[]"]).value == 1


def test_what_it_suits():
    assert (
        entity_f1.suits(['{"PER":["Ann"]}', "{}", "{}", "{}", "no"])
        and entity_f1.suits(["O B-X", "O"])
        and entity_f1.suits(['[[0,1,"X"]]'])
    )
    assert (
        not entity_f1.suits(['{"a":1}'])
        and not entity_f1.suits(["{}", "{}"])
        and not entity_f1.suits(["yes", "no"])
        and not entity_f1.suits([])
    )
