from tunesmith.evaluate.metrics import json_valid


def test_strict_and_of_the_references_kind():
    predictions = ['{"b":2}', "[1]", "[1]", "{}", '```json\n{"a":1}\n```', '{"a":NaN}', "{", "3"]
    references = ['{"a":1}', '{"a":1}', "[2]", "[2]", '{"a":1}', '{"a":1}', "{}", "{}"]
    assert json_valid.score(predictions, references).per_row == [1, 0, 1, 0, 0, 0, 0, 0]


def test_any_json_where_the_reference_is_none():
    assert json_valid.score(["3", "{}", "word"], ["word", "word", "word"]).per_row == [1, 1, 0]


def test_suits_json_references():
    assert json_valid.suits(['{"a":1}', "[]"])
    assert not json_valid.suits(["yes", "no"])
