import pytest

from tunesmith.evaluate.strict_json import container, mostly_json, parse, spell


@pytest.mark.parametrize(
    "text", ["NaN", '{"a": Infinity}', '{"a":1,"a":1}', "```json\n{}\n```", "Sure: {}", "{} {}", "{'a': 1}", "[1,]", "", "[" * 100_000]
)
def test_what_a_program_would_stumble_over_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)
    assert container(text) is None


def test_only_objects_and_arrays_are_containers():
    assert (container(' {"a":1}\n'), container("[]"), container("3"), container('"x"'), container("null")) == (dict, list, None, None, None)


def test_equal_values_have_one_spelling():
    assert spell({"b": 1, "a": 2.0}) == spell({"a": 2, "b": 1}) == '{"a":2,"b":1}'
    assert spell("e\u0301") == spell("é")
    assert spell(True) != spell(1) != spell("1")
    assert spell([1, 2]) != spell([2, 1])


def test_mostly_json_is_four_in_five():
    assert mostly_json(["{}"] * 4 + ["no"])
    assert not mostly_json(["{}"] * 3 + ["no"])
    assert not mostly_json([])
