import json
from pathlib import Path

import pytest

from tunesmith.data.check import as_json, check


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def pair(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def warnings(rows):
    (report,) = check([write("a.jsonl", rows)])
    assert report.good == len(rows)
    return report.warnings


LONG = [pair(f"question {i}", f"an answer of many words, number {i}, which goes on") for i in range(60)]


def test_a_clean_file_has_no_warnings():
    assert warnings(LONG) == []


def test_duplicates_and_conflicts():
    assert warnings([*LONG, LONG[0], LONG[3], pair("question 0", "something else altogether")]) == [
        "2 exact duplicates of earlier rows: lines 61, 62",
        "1 row with an earlier row's prompt and another answer: lines 63 and 1",
    ]


def test_rows_in_two_files():
    write("train.jsonl", LONG)
    write("test.jsonl", [*LONG[5:8], pair("new", "an answer that stands nowhere else at all")])
    train, test = check(["train.jsonl", "test.jsonl"])
    assert train.warnings == []
    assert test.warnings == ["3 rows also in train.jsonl: lines 1, 2, 3; rows for a test must not be learned"]


def test_short_answers_among_long_ones():
    assert warnings([*LONG, pair("x", ".")]) == ["1 answer of 2 characters or fewer among long ones: line 61"]


def test_labels():
    rows = [pair(f"text {i} {label}", label) for i in range(6) for label in ("good", "Good", "bad")]
    assert warnings([*rows, pair("text", "odd")]) == [
        "the answers are labels, 4 different: 'good' 6, 'Good' 6, 'bad' 6, 'odd' 1",
        "labels that differ in case or spaces only: 'good', 'Good'",
        "labels with one row only: 'odd'",
    ]


def test_long_rows_mangled_text_and_placeholders():
    rows = [
        *LONG,
        pair("x" * 25_000, "y" * 100),
        pair("price", "It costs 5 €, and the café is open".encode().decode("cp1252")),
        pair("who", "I am {{name}}, a helpful assistant"),
    ]
    long, mangled, placeholder = warnings(rows)
    assert long.startswith("1 row over 20,000 characters (longest 25,101): line 61")
    assert mangled.startswith("1 row of mangled text") and mangled.endswith("line 62")
    assert placeholder == "1 answer with a placeholder ({{name}}), which would be learned as it stands: line 63"


def test_right_accents_are_not_mangled():
    assert (
        warnings(
            [
                *LONG,
                pair("où", "à côté de l'église, où Zoë dîne; größer; ÀÉÎ «oui» 5 € – voilà"),
                pair("中文", "这是一个很长的中文回答，没有任何问题。"),
            ]
        )
        == []
    )


def test_rows_of_no_known_shape_are_tried_with_the_likeliest_columns():
    (report,) = check([write("a.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)])])
    assert (report.rows, report.good, report.format) == (5, 5, "prompt")
    assert "data.columns={prompt: question, completion: answer}, which training needs to be told" in report.warnings[0]
    (report,) = check([write("b.jsonl", [{"x": "1", "y": "2"}] * 3)])
    assert (report.rows, report.good, report.bad[0].line) == (3, 0, 1)


def test_files_that_cannot_be_read_are_reported_beside_the_others():
    Path("page.jsonl").write_text("<html>")
    Path("cut.json").write_text('[\n{"prompt": "a", "completion": "b"},\n{"prompt')
    reports = check([write("a.jsonl", LONG), "none.jsonl", "page.jsonl", "cut.json"])
    assert [(report.rows, report.good, len(report.bad)) for report in reports] == [(60, 60, 0), (0, 0, 1), (0, 0, 1), (1, 1, 1)]
    assert [report.bad[0].line for report in reports[1:]] == [0, 1, 3]
    assert reports[1].bad[0].reason == "no such file; did you mean 'a.jsonl'?"


def test_json_is_what_scripts_rely_on():
    write("a.jsonl", [pair("q", "a"), pair("q", "")])
    assert json.loads(as_json(check(["a.jsonl"]))) == [
        {
            "file": "a.jsonl",
            "rows": 2,
            "good": 1,
            "bad": [{"line": 2, "reason": "'completion' is empty: there is nothing to learn"}],
            "warnings": [],
            "format": "prompt",
            "encoding": "utf-8",
        }
    ]
