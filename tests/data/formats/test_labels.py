import csv
from typing import Any

import pytest

from tests.shared import SHARED, needs, read
from tunesmith.data import shape
from tunesmith.data.columns import parse, rename
from tunesmith.data.formats.labels import LABELS, TEXTS, recognises, to_sample
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError


def learned(values):
    return [message["content"] for message in to_sample(values, "a:1").messages]


@pytest.mark.parametrize("label", ["positive", "007", "1.0", "NA", "None", "null", "TRUE", "false", "-", " padded ", "非常好"])
def test_the_label_is_learned_as_it_is_written(label):
    assert learned({"text": "t", "label": label}) == ["t", label]


@pytest.mark.parametrize(("label", "text"), [(0, "0"), (-1, "-1"), (9007199254740993, "9007199254740993"), (["a", "b"], '["a","b"]')])
def test_values_that_are_no_texts(label, text):
    assert learned({"text": "t", "label": label}) == ["t", text]


@pytest.mark.parametrize(("text", "label"), [("review", "label"), ("Sentence", "Category"), ("query", "intent"), ("评论", "标签")])
def test_other_names(text, label):
    row = {text: "t", label: "x", "id": "a7"}
    assert recognises(set(row), row)
    assert learned(row) == ["t", "x"]


def test_names_are_distinct():
    assert not TEXTS & LABELS


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t", "label": "l", "idx": "a", "split": "train", "url": "http", "n": 3, "x": None, "y": ""},
        {"text": "t", "label": ""},  # a bad row of this shape
        {"text": "t", "label": None},
        {"text": "t", "label": "x" * 80},
    ],
)
def test_recognises(row):
    assert recognises(set(row), row)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "t"},
        {"text": "t", "label": True},
        {"text": "t", "label": 0.5},
        {"text": "t", "label": "x" * 81},
        {"text": "t", "label": ["a"]},
        {"text": 3, "label": "l"},
        {"text": "t", "title": "u", "label": "l"},
        {"text": "t", "label": "l", "category": "c"},
        {"text": "t", "label": "l", "explanation": "because"},
        {"text": "t", "label": "l", "tags": ["a"]},
        {"prompt": "t", "completion": "a", "label": "l"},
    ],
)
def test_does_not_recognise(row):
    assert not recognises(set(row), row)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"text": "t", "label": ""}, "no label: 'label' is empty"),
        ({"text": "t", "category": " "}, "no label: 'category' is empty"),
        ({"text": "t", "label": None}, "no label: 'label' is null"),
        ({"text": "t", "label": False}, "'label' is false: a class, or a judgement.*{prompt: ..., completion: label}"),
        ({"text": "t", "label": 0.5}, "the number 0.5, not a text or a whole number"),
        ({"text": " ", "label": "l"}, "'text' is blank"),
        ({"text": "t"}, r"no 'label' \(the row has text\)"),
        ({"review": "t", "title": "u", "label": "l"}, r"no 'text' \(review, title may all be it: say which by data.columns={text: ...}\)"),
    ],
)
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        to_sample(values, "a:1")


def test_a_question_of_a_template():
    from tunesmith.data.sources import Decided, Reading, Row, Tally
    from tunesmith.data.sources import to_sample as understood

    def asked(row: dict[str, Any], columns: dict[str, str] | None, prompt: str) -> list[str]:
        wanted = parse(columns, prompt)
        sample = understood(Row("a", 1, row), Reading(columns=wanted), Decided("prompt", wanted, {}), Tally())
        assert "completion" in wanted.columns or sample.source == sample.messages[0]["content"]  # type: ignore[union-attr]
        return [message["content"] for message in sample.messages]  # type: ignore[union-attr]

    row = {"review": "Nice.", "stars": 5}
    assert asked(row, {"label": "stars"}, "Stars of: {review}") == ["Stars of: Nice.", "5"]
    assert asked(row, None, "Stars of: {review}") == ["Stars of: Nice.", "5"]
    assert asked({"text": "Nice.", "label": "good"}, None, "{text}?") == ["Nice.?", "good"]
    assert asked({"text": "Nice.", "label": "good", "note": "n"}, None, "{text}?") == ["Nice.?", "good"]
    assert asked(row | {"why": "w"}, {"completion": "why"}, "{review}") == ["Nice.", "w"]
    assert asked(row | {"label": "good"}, {"label": "label"}, "{review}") == ["Nice.", "good"]
    named = {"text": "body", "label": "verdict"}
    bodied = {"body": "Nice.", "verdict": "good", "title": "A stay"}
    assert asked(bodied, named, "Good or bad?\n{body}") == ["Good or bad?\nNice.", "good"]
    assert asked(bodied, named, "{title}: good or bad?") == ["A stay: good or bad?", "good"]
    assert asked(bodied | {"verdict": "x" * 81}, named, "Why?\n{body}") == ["Why?\nNice.", "x" * 81]
    assert asked({"text": "Nice.", "verdict": "good"}, {"label": "verdict"}, "{text}?") == ["Nice.?", "good"]
    assert asked({"body": "Nice.", "label": "good", "title": "t"}, {"text": "body"}, "{body}?") == ["Nice.?", "good"]
    for several in ({"label": "good"}, {"answer": "w"}):
        assert shape.of_row(rename(row | several, parse(None, "{review}"), {}), parse(None, "{review}")) == ""


def test_a_template_leaves_a_marked_text_beside_the_question():
    span = [{"start": 0, "end": 4, "label": "X"}]
    for columns, row in (
        ({"text": "body", "label": "m"}, {"body": "Nice.", "m": span}),
        ({"text": "body"}, {"body": "Nice.", "spans": span}),
    ):
        renamed = rename(row, parse(columns, "Mark: {body}"), {})
        assert (renamed["text"], renamed["prompt"]) == ("Nice.", "Mark: Nice.")


@needs("banking77")
@pytest.mark.parametrize(
    ("file", "text", "label"),
    [
        ("banking77/test.csv", "text", "category"),
        ("chnsenticorp_htl/test.csv", "review", "label"),
        ("waimai_10k/test.csv", "review", "label"),
        ("dirty/csv_na_like_labels.csv", "text", "label"),
    ],
)
def test_real_files_cell_by_cell(file, text, label):
    samples, report = read(file)
    with (SHARED / file).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert (report.format, report.bad) == ("labels", [])
    assert [[message["content"] for message in sample.messages] for sample in samples] == [[row[text], row[label]] for row in rows]


@needs("tnews")
def test_a_real_file_with_two_labels_asks_which():
    with pytest.raises(UserError, match=r"\(label, label_desc\): say which, such as data.columns={text: sentence, label: label_desc}"):
        read("tnews/test.jsonl")
    samples, _ = read("tnews/test.jsonl", columns={"text": "sentence", "label": "label_desc"})
    assert samples[0].messages[1]["content"] == "news_travel"


def test_what_a_head_learns_from():
    sample = to_sample({"review": " fine ", "stars": 5, "id": 3}, "a:1")
    assert (sample.source, sample.label) == (" fine ", "5")
