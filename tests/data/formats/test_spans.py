import json
from typing import Any

import pytest

from tests.shared import SHARED, needs, read
from tunesmith.data.formats.spans import recognises, to_sample
from tunesmith.data.sample import RowError

TEXT = "Angela Merkel visited Paris"
ANSWER = '{"PER":["Angela Merkel"],"LOC":["Paris"]}'


def learned(**values):
    return to_sample({"text": TEXT} | values, "a:1").messages[1]["content"]


SAME: list[dict[str, Any]] = [
    {"spans": [{"start": 0, "end": 13, "label": "PER"}, {"start": 22, "end": 27, "label": "LOC"}]},
    {"spans": [{"start": 22, "end": 27, "label": "LOC"}, {"start": 0, "end": 13, "label": "PER"}]},
    {"entities": [[0, 13, "PER"], [22, 27, "LOC"]]},
    {"label": [[0, 13, "PER"], [22, 27, "LOC"]]},
    {"entities": [{"start_offset": 0, "end_offset": 13, "type": "PER"}, {"start_offset": 22, "end_offset": 27, "type": "LOC"}]},
    {"entities": [{"offset": 0, "length": 13, "category": "PER"}, {"offset": 22, "length": 5, "category": "LOC"}]},
    {"labels": [{"start": 0, "end": 13, "labels": ["PER"], "text": "Angela Merkel"}, {"start": 22, "end": 27, "labels": ["LOC"]}]},
    {"labels": [{"slot": "PER", "valueSpan": {"endIndex": 13}}, {"slot": "LOC", "valueSpan": {"startIndex": 22, "endIndex": 27}}]},
    {"label": {"PER": {"Angela Merkel": [[0, 12]]}, "LOC": {"Paris": [[22, 26]]}}},  # ends included, as the texts say
    {"label": {"PER": {"Angela Merkel": [[0, 13]]}, "LOC": {"Paris": [[22, 27]]}}},
    {"spans": [{"start": 0, "end": 12, "tag": "PER", "text": "Angela Merkel"}, {"start": 22, "end": 26, "tag": "LOC"}]},
    {"spans": '[{"start": 0, "end": 13, "label": "PER"}, {"start": 22, "end": 27, "label": "LOC"}]'},
]


@pytest.mark.parametrize("values", SAME)
def test_every_spelling_means_the_same(values):
    assert recognises({"text", *values}, {"text": TEXT} | values)
    assert learned(**values) == ANSWER


def test_restaurant_slots():
    row = {"userInput": {"text": "for 5"}, "labels": [{"slot": "people", "valueSpan": {"startIndex": 4, "endIndex": 5}}]}
    assert recognises(set(row), row)
    assert [message["content"] for message in to_sample(row, "a:1").messages] == ["for 5", '{"people":["5"]}']
    assert to_sample({"userInput": {"text": "hello"}}, "a:1").messages[1]["content"] == "{}"


def test_none_several_and_overlapping():
    assert learned(spans=[]) == learned(entities=[]) == "{}"
    assert learned(spans=[[0, 13, "PER"], [0, 6, "FIRST"], [0, 13, "PER"]]) == '{"FIRST":["Angela"],"PER":["Angela Merkel"]}'
    row = {"text": "été à 北京 😀!", "spans": [[6, 8, "LOC"], [10, 11, "END"]]}
    assert to_sample(row, "a:1").messages[1]["content"] == '{"LOC":["北京"],"END":["!"]}'


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"spans": [[22, 28, "LOC"]]}, "LOC ends at 28, but the text has 27 characters"),
        ({"spans": [[5, 5, "LOC"]]}, "LOC begins at 5 and ends at 5: nothing stands there"),
        ({"spans": [[9, 5, "LOC"]]}, "nothing stands there"),
        ({"spans": [[-3, 5, "LOC"]]}, "begins at -3"),
        ({"spans": [[0, 5]]}, r"spans 1 is a list of 2; a span is \[start, end, type\]"),
        ({"spans": [[0, 5, "A"], "x"]}, "spans 2 is the text 'x'"),
        ({"spans": [{"start": "0", "end": 5, "label": "A"}]}, "spans 1: start is the text '0' and end is the number 5"),
        ({"spans": [{"start": 0, "label": "A"}]}, "end is null"),
        ({"spans": [{"start": 0, "end": 5}]}, "spans 1: its type is null"),
        (
            {"entities": [{"start": 0, "end": 6, "label": "LOC", "text": "Paris"}]},
            "LOC is said to be 'Paris', but at 0 to 6 the text has 'Angela'",
        ),
        ({"label": {"LOC": {"Paris": [[0, 4]]}}}, "LOC is said to be 'Paris', but at 0 to 4 the text has 'Ange'"),
        ({"label": {"LOC": ["Paris"]}}, "'label': 'LOC' is a list of 1"),
        ({"spans": None}, r"'spans' is null; where a text has no spans, write \[\]"),
        ({"spans": "Paris"}, "no JSON list"),
        ({"spans": 3}, "'spans' is the number 3"),
        ({}, r"no 'spans' \(the row has text\)"),
        ({"text": "", "spans": []}, "'text' is empty"),
    ],
)
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        learned(**values)


def test_recognises():
    assert recognises({"text", "entities"}, {"text": TEXT, "entities": []})
    for values in (
        {"text": TEXT, "label": "greeting"},
        {"text": TEXT, "labels": ["a", "b"]},
        {"text": TEXT, "label": []},  # spans, or labels: the other rows say it
        {"text": TEXT, "label": {}},
        {"text": TEXT, "entities": {"LOC": ["Paris"]}},
        {"tokens": ["a"], "labels": [[0, 1, "X"]]},
        {"text": TEXT, "intent": "visit", "entities": [[0, 6, "X"]]},  # two answers
        {"title": "a", "sentence": TEXT, "spans": [[0, 6, "X"]]},
        {"data": [{"entity": "X"}]},
        {"data": "x"},
        {"text": TEXT},
    ):
        assert not recognises(set(values), values)


def test_what_is_to_be_done_stands_above_the_text():
    def asked(prompt):
        return to_sample({"text": TEXT, "spans": [], "prompt": prompt}, "a:1").messages[0]["content"]

    assert asked("Name the places.") == f"Name the places.\n{TEXT}"
    assert asked(f"In {TEXT!r}, name the places.") == f"In {TEXT!r}, name the places."
    assert asked(None) == TEXT


@needs("cluener")
def test_cluener():
    samples, report = read("cluener/dev.jsonl")
    assert (report.format, report.good, report.bad) == ("spans", 1343, [])
    rows = [json.loads(line) for line in (SHARED / "cluener/dev.jsonl").read_text(encoding="utf-8").splitlines()]
    for sample, row in zip(samples, rows, strict=True):
        answer = json.loads(sample.messages[1]["content"])
        want = {kind: sorted(text for text, places in texts.items() for _ in places) for kind, texts in row["label"].items()}
        assert {kind: sorted(texts) for kind, texts in answer.items()} == want


@needs("restaurant8k_slots")
def test_restaurant8k():
    samples, report = read("restaurant8k_slots/test.json")
    assert (report.format, report.good, report.bad) == ("spans", 1000, [])
    rows = json.loads((SHARED / "restaurant8k_slots/test.json").read_text(encoding="utf-8"))
    for sample, row in zip(samples, rows, strict=True):
        want = set()
        for label in row.get("labels", []):
            span = label["valueSpan"]
            want.add((label["slot"], row["userInput"]["text"][span.get("startIndex", 0) : span["endIndex"]]))
        answer = json.loads(sample.messages[1]["content"])
        assert {(slot, text) for slot, texts in answer.items() for text in texts} == want


def test_a_text_in_pieces():
    row = {"data": [{"text": "add "}, {"text": "Ibar", "entity": "track"}, {"text": " to "}, {"text": "my", "entity": "owner"}]}
    assert recognises(set(row), row)
    assert [message["content"] for message in to_sample(row, "a:1").messages] == ["add Ibar to my", '{"track":["Ibar"],"owner":["my"]}']
    for pieces, words in [
        ("x", "not a list of pieces"),
        ([{"text": " "}], "'data' is blank"),
        ([{"text": "a", "entity": 3}], "the type of 'a' is the number 3"),
    ]:
        with pytest.raises(RowError, match=words):
            to_sample({"data": pieces}, "a:1")


def test_other_names_of_the_text():
    assert [m["content"] for m in to_sample({"query": "ab", "slots": [[0, 1, "X"]]}, "a:1").messages] == ["ab", '{"X":["a"]}']
    assert recognises({"query", "slots"}, {"query": "ab", "slots": [[0, 1, "X"]]})
    with pytest.raises(RowError, match=r"title, body may all be the text: say which by data\.columns=\{text: \.\.\.\}"):
        to_sample({"title": "a", "body": "b", "spans": []}, "a:1")


def test_what_a_head_learns_from():
    row = {"text": "to Paris ", "spans": [[2, 9, "LOC"], [0, 2, "WAY"], [8, 9, "BLANK"]], "prompt": "Where?"}
    sample = to_sample(row, "a:1")
    assert sample.source == "to Paris " and sample.words == ()
    assert sample.entities == ((0, 2, "WAY"), (3, 8, "LOC"), (8, 9, "BLANK"))  # without the blanks at an entity's ends
    assert sample.messages[1]["content"] == '{"WAY":["to"],"LOC":[" Paris "],"BLANK":[" "]}'  # as it is written, it is learned
