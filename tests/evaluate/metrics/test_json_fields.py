import pytest

from tunesmith.evaluate.metrics import json_fields


def f1(prediction: str, reference: str) -> float:
    return json_fields.score([prediction], [reference]).value


def test_precision_recall_and_f1_over_all_rows():
    predictions = ['{"a":1,"b":2,"c":3}', '{"a":9}', "no json"]
    references = ['{"a":1,"b":5}', '{"a":9}', '{"a":1}']
    scored = json_fields.score(predictions, references)
    # matched a, a; predicted 3 + 1 + 0; expected 2 + 1 + 1
    assert scored.also == {"precision": 2 / 4, "recall": 2 / 4}
    assert scored.value == pytest.approx(2 * 2 / (4 + 4))
    assert scored.per_row == pytest.approx([2 / 5, 1, 0])


def test_fields_are_paths_with_values():
    assert f1('{"a":{"b":1,"c":2}}', '{"a":{"b":1,"c":3}}') == 0.5
    assert f1('{"b":1}', '{"a":{"b":1}}') == 0
    assert f1('{"a.b":1}', '{"a":{"b":1}}') == 0
    assert f1('{"a":"1"}', '{"a":1}') == 0
    assert f1('{"a":null}', "{}") == 0
    assert f1('{"b":2,"a":1.0}', '{"a":1,"b":2}') == 1


def test_lists_are_multisets_of_whole_elements():
    reference = '[{"slot":"time","value":"7"},{"slot":"people","value":"2"}]'
    assert f1('[{"value":"2","slot":"people"},{"slot":"time","value":"7"}]', reference) == 1
    assert f1('[{"slot":"time","value":"2"},{"slot":"people","value":"7"}]', reference) == 0  # values mixed between objects
    assert f1('[{"slot":"time","value":"7"}]', reference) == pytest.approx(2 / 3)
    assert f1('{"tags":["x","x"]}', '{"tags":["x"]}') == pytest.approx(2 / 3)


def test_an_empty_list_is_an_answer_of_its_own():
    assert f1("[]", "[]") == 1
    assert f1('["x"]', "[]") == 0
    assert f1("{}", "[]") == 0


def test_a_reference_that_is_no_json_is_one_field():
    assert f1(" plain ", "plain") == 1
    assert f1("other", "plain") == 0
