from typing import Any

import pytest

from tunesmith.data.columns import Columns, absent_as_empty, leaves, parse, rename
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError


def renamed(values, columns=None, prompt=None, absent=None):
    return rename(values, parse(columns, prompt), absent or {})


def test_without_settings_a_row_is_itself():
    row = {"a": 1}
    assert not parse(None, None)
    assert rename(row, parse({}, None), {}) is row


def test_paths_reach_inside_and_other_columns_stay():
    row = {"userInput": {"text": "q"}, "labels": [{"slot": "é"}], "system": "s", "id": 3}
    assert renamed(row, {"prompt": "userInput.text", "completion": "labels"}) == {
        "prompt": "q",
        "completion": '[{"slot":"é"}]',
        "system": "s",
        "id": 3,
    }


def test_a_column_that_changes_its_name_does_not_keep_its_old_one():
    assert renamed({"prompt": "a", "text": "b"}, {"completion": "prompt", "prompt": "text"}) == {"completion": "a", "prompt": "b"}


@pytest.mark.parametrize(("value", "text"), [("x", "x"), (7, "7"), (1.5, "1.5"), (True, "true"), ([], "[]"), ({"a": "é"}, '{"a":"é"}')])
def test_values_become_text(value, text):
    assert renamed({"q": "q", "a": value}, {"prompt": "q", "completion": "a"})["completion"] == text


def test_lists_that_are_meant_as_lists_stay():
    turns = [{"role": "user", "content": "q"}]
    assert renamed({"chat": turns, "functions_used": [1]}, {"messages": "chat", "tools": "functions_used"}) == {
        "messages": turns,
        "tools": [1],
    }
    assert renamed({"chat": turns, "a": turns}, {"prompt": "chat", "completion": "a"}) == {"prompt": turns, "completion": turns}


def test_template():
    row = {"q": "why", "context": {"text": "ctx", "n": [1, 2]}, "a": "b"}
    assert renamed(row, {"completion": "a"}, "{{q}} {q}\n{ context.text }/{context.n}")["prompt"] == "{q} why\nctx/[1,2]"


@pytest.mark.parametrize(
    ("template", "words"), [("{q", "a single '{'"), ("q}", "a single '}'"), ("{}", "names no column"), ("plain", "names no column")]
)
def test_broken_templates(template, words):
    with pytest.raises(UserError, match=words):
        parse(None, template)


def test_misfits_of_the_settings_are_all_named():
    with pytest.raises(UserError) as error:
        parse({"promt": "q", "prompt": "q", "zzz": "a"}, "{q")
    text = str(error.value)
    for words in ("'promt' is no column of ours (write ours: theirs); did you mean 'prompt'", "'zzz'", "leave one out", "a single '{'"):
        assert words in text
    assert len(error.value.problems) == 4


@pytest.mark.parametrize(
    ("columns", "prompt", "words"),
    [
        ({"prompt": "quest"}, None, "data.columns: no column 'quest'; the row has question, inner.text; did you mean 'question'"),
        ({"prompt": "inner.txt"}, None, r"no column 'inner.txt' \(no 'txt'\)"),
        ({}, "{quest}", "data.prompt: no column 'quest'"),
    ],
)
def test_absent_columns_are_bad_rows(columns, prompt, words):
    with pytest.raises(RowError, match=words):
        renamed({"question": "q", "inner": {"text": "t"}}, columns, prompt)


def test_null_in_a_template_is_a_bad_row():
    with pytest.raises(RowError, match="'q' is null"):
        renamed({"q": None}, {}, "{q}")


def test_absent_lists_are_empty_lists_where_the_column_is_always_a_list():
    wanted = Columns({"prompt": "q", "completion": "a"})
    assert absent_as_empty([{"q": "x", "a": [1]}, {"q": "y"}, {"q": "z", "a": None}], wanted) == {"completion": "[]"}
    assert absent_as_empty([{"q": "x", "a": {"b": 1}}, {"q": "y"}], wanted) == {"completion": "{}"}
    cases: list[list[dict[str, Any]]] = [
        [{"q": "x", "a": "t"}, {"q": "y"}],
        [{"q": "x", "a": [1]}, {"q": "y", "a": "t"}, {"q": "z"}],
        [{"q": "x"}],
        [{"q": "x", "a": [1]}],
    ]
    for rows in cases:
        assert absent_as_empty(rows, wanted) == {}
    assert rename({"q": "y"}, wanted, {"completion": "[]"}) == {"prompt": "y", "completion": "[]"}


def test_leaves():
    assert leaves({"a": 1, "b": {"c": 1, "d": {"e": 1}}, "l": [{}], "empty": {}}) == ["a", "b.c", "b.d", "l", "empty"]


def test_messages_and_spans_stay_what_they_are():
    turn, span = {"from": "gpt", "value": "a"}, {"start": 0, "end": 1, "label": "X"}
    assert renamed({"q": [turn], "a": turn}, {"prompt": "q", "completion": "a"}) == {"prompt": [turn], "completion": turn}
    for kept in ([span], [[0, 1, "X"]], {"X": {"a": [[0, 0]]}}, []):
        assert renamed({"m": kept}, {"label": "m"}) == {"label": kept}
        assert renamed({"m": kept}, {"spans": "m"}) == {"spans": kept}
    assert renamed({"m": ["a", "b"]}, {"label": "m"}) == {"label": '["a","b"]'}
    assert absent_as_empty([{"m": [span]}, {}], Columns({"spans": "m"})) == {"spans": "[]"}
