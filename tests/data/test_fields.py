from typing import Any

import pytest

from tunesmith.data.fields import (
    DOUBT,
    describe,
    dig,
    doubts,
    json_text,
    judged,
    listed,
    optional_text,
    parsed_list,
    refuse_media,
    required_text,
)
from tunesmith.data.sample import RowError


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (42, "the number 42"),
        ("x", "the text 'x'"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "an object with a"),
        ({}, "an object with nothing"),
    ],
)
def test_describe(value, words):
    assert describe(value) == words


def test_required_text():
    assert required_text({"a": " x "}, "a") == " x "
    with pytest.raises(RowError, match="no 'a'"):
        required_text({"b": 1}, "a")
    for value, words in [(1, "the number 1, not a text"), ("", "'a' is empty"), (" \n", "'a' is blank: why")]:
        with pytest.raises(RowError, match=words):
            required_text({"a": value}, "a", "why")


def test_optional_text():
    assert [optional_text(values, "a") for values in ({}, {"a": None}, {"a": "  "}, {"a": "x"})] == ["", "", "", "x"]
    with pytest.raises(RowError, match="the number 1, not a text"):
        optional_text({"a": 1}, "a")


def test_parsed_list():
    assert [parsed_list(value, "a") for value in (None, "", [1], "[1]")] == [[], [], [1], [1]]
    for value in ("{}", "[1", 3):
        with pytest.raises(RowError, match="'a' is"):
            parsed_list(value, "a")


def test_json_text_is_compact_and_readable():
    assert [json_text(value) for value in ("x", 7, True, ["é", 1.5], {"a": None})] == ["x", "7", "true", '["é",1.5]', '{"a":null}']


@pytest.mark.parametrize(
    ("path", "value"),
    [("a.b", 1), ("a.c.d", 2), ("l.0.x", 3), ("l.-1.x", 4), ("text.1", 5), ("e.f.g", 6), ("l.0", {"x": 3})],
)
def test_dig(path, value):
    row = {"a": {"b": 1, "c": {"d": 2}}, "l": [{"x": 3}, {"x": 4}], "text.1": 5, "e.f": {"g": 6}}
    assert dig(row, path) == value


@pytest.mark.parametrize(("path", "part"), [("z", "z"), ("a.z", "z"), ("l.7.x", "7"), ("l.x", "x"), ("a.b.c", "c")])
def test_dig_names_the_absent_part(path, part):
    with pytest.raises(KeyError) as error:
        dig({"a": {"b": 1}, "l": [{"x": 3}]}, path)
    assert error.value.args[0] == part


def test_listed_raises_nothing():
    cases: list[tuple[Any, list[int]]] = [([1], [1]), ("[1]", [1]), (" [1]", [1]), ("[1", []), ("x", []), (None, []), ({}, [])]
    for value, items in cases:
        assert listed(value) == items


def test_judged():
    assert [judged(row) for row in ({"label": True}, {"kto_tag": False}, {"label": "FALSE"}, {"label": " true "})] == [
        True,
        False,
        False,
        True,
    ]
    assert [judged(row) for row in ({}, {"label": 1}, {"label": "yes"}, {"label": None})] == [None] * 4


def test_media_are_refused_by_name():
    refuse_media({"images": [], "text": "x", "video": None})
    with pytest.raises(RowError, match=r"'audios' is a list of 1: models are trained on text only; leave rows with audios out"):
        refuse_media({"audios": ["a.wav"]})


def test_doubts():
    assert [doubts({"label": label}) for label in (0, 1, "0", "1")] == [(DOUBT,)] * 4
    assert [doubts(row) for row in ({}, {"label": 2}, {"label": True}, {"label": "x"}, {"label": [0]}, {"label": None})] == [()] * 6
