import json
from pathlib import Path

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.look.check import as_json, check
from tunesmith.data.look.duplicates import Digests
from tunesmith.data.look.lengths import Limit, tokenised
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.data.sources import load_samples


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def pair(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def warnings(rows):
    (checked,) = check([write("a.jsonl", rows)])
    assert checked.report.good == len(rows)
    return checked.warnings()


def only(files):
    (checked,) = check(files)
    return checked.report


LONG = [pair(f"question {i}", f"an answer of many words, number {i}, which goes on") for i in range(60)]


def test_a_clean_file_has_no_warnings():
    assert warnings(LONG) == []


def test_duplicates_and_conflicts():
    assert warnings([*LONG, LONG[0], LONG[3], pair("question 0", "something else altogether")]) == [
        "2 exact duplicates of earlier rows: lines 61-62",
        "1 row with an earlier row's prompt and another answer: line 63 (earlier: line 1)",
    ]


def test_rows_in_two_files():
    write("train.jsonl", LONG)
    write("test.jsonl", [*LONG[5:8], pair("new", "an answer that stands nowhere else at all")])
    train, test = check(["train.jsonl", "test.jsonl"])
    assert train.warnings() == []
    assert test.warnings() == ["3 rows also in train.jsonl: lines 1-3 (there: lines 6-8); rows for a test must not be learned"]


def test_short_answers_among_long_ones():
    assert warnings([*LONG, pair("x", ".")]) == ["1 answer of 2 characters or fewer among long ones: line 61"]


def test_labels():
    rows = [pair(f"text {i} of {number}", label) for i in range(6) for number, label in enumerate(("good", "Good", "bad"))]
    assert warnings([*rows, pair("text", "odd")]) == [
        "the answers are labels, 4 different: 'good' 6, 'Good' 6, 'bad' 6, 'odd' 1",
        "labels that differ in case, spaces, width or end punctuation only, each learned as a class of its own: 'good' 6, 'Good' 6",
        "1 label with one row only: 'odd'",
    ]


def test_mangled_text_and_placeholders():
    rows = [
        *LONG,
        pair("price", "It costs 5 €, and the café is open".encode().decode("cp1252")),
        pair("who", "I am {{name}}, a helpful assistant"),
    ]
    mangled, placeholder = warnings(rows)
    assert mangled.startswith("1 row of mangled text") and mangled.endswith("line 61")
    assert placeholder == "1 answer with a placeholder ({{name}}), which would be learned as it stands: line 62"


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
    report = only([write("a.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)])])
    assert (report.rows, report.good, report.format) == (5, 5, "prompt")
    assert "data.columns={prompt: question, completion: answer}, which training needs to be told" in report.warnings[0]
    report = only([write("b.jsonl", [{"x": "1", "y": "2"}] * 3)])
    assert (report.rows, report.good, report.bad[0].line) == (3, 0, 1)


def test_files_that_cannot_be_read_are_reported_beside_the_others():
    Path("page.jsonl").write_text("<html>")
    Path("cut.json").write_text('[\n{"prompt": "a", "completion": "b"},\n{"prompt')
    reports = [checked.report for checked in check([write("a.jsonl", LONG), "none.jsonl", "page.jsonl", "cut.json"])]
    assert [(report.rows, report.good, len(report.bad)) for report in reports] == [(60, 60, 0), (0, 0, 1), (0, 0, 1), (1, 1, 1)]
    assert [report.bad[0].line for report in reports[1:]] == [0, 1, 3]
    assert reports[1].bad[0].reason.startswith("no such file; did you mean 'a.jsonl'")


def test_json_is_what_scripts_rely_on():
    write("a.jsonl", [pair("question", "a"), pair("question", "")])
    (document,) = json.loads(as_json(check(["a.jsonl"])))
    bad = [{"line": 2, "reason": "'completion' is empty: there is nothing to learn"}]
    relied_on = {"file": "a.jsonl", "rows": 2, "good": 1, "bad": bad, "warnings": [], "format": "prompt", "encoding": "utf-8"}
    assert {key: document[key] for key in relied_on} == relied_on
    assert document["lengths"] | {"rule": ""} == {
        "unit": "tokens, estimated", "rule": "", "sum": 13, "mean": 13.0, "p50": 13, "p90": 13, "p99": 13, "longest": 13,
        "max_length": 1024, "over": {"rows": 0, "lines": "", "longer_than_half_answers": 0},
    }  # fmt: skip
    assert document["learned"] == {"unit": "characters", "learned": 1, "all": 9, "share": 0.1111}
    assert document["histogram"] == {"edges": [0, 16], "counts": [1]}
    assert document["kinds"] == {"conversations": 1}
    nothing = {"rows": 0, "lines": "", "earlier_lines": ""}
    assert document["duplicates"] == {"exact": nothing, "alike": nothing}
    assert (document["conflicts"], document["leaks"], document["labels"], document["text"]) == (nothing, [], {}, {})


def test_warnings_name_all_lines_and_in_a_terminal_a_few_runs_of_them():
    rows = [row for i in range(20) for row in (LONG[i], LONG[i])]
    (checked,) = check([write("a.jsonl", rows)])
    assert checked.warnings() == [f"20 exact duplicates of earlier rows: lines {', '.join(str(2 * i + 2) for i in range(20))}"]
    assert checked.warnings(5) == ["20 exact duplicates of earlier rows: lines 2, 4, 6, 8, 10 ..."]


def test_bad_rows_between_count_as_rows_of_the_file():
    rows = [LONG[0], LONG[0], pair("x", ""), LONG[0], LONG[0]]
    (checked,) = check([write("a.jsonl", rows)])
    assert checked.warnings() == ["3 exact duplicates of earlier rows: lines 2, 4-5"]


def test_a_hopelessly_long_row_is_bad_and_a_long_one_is_a_warning():
    rows = [*LONG, pair("word " * 20_000, "an answer"), pair("q", "中" * 900), pair("word " * 800, "an answer")]
    (checked,) = check([write("a.jsonl", rows)], limit=Limit(256))
    assert (checked.report.rows, checked.report.good, checked.report.bad[0].line) == (63, 62, 61)
    assert checked.report.bad[0].reason == (
        "about 25,013 tokens, 98 times data.max_length 256: data.on_overlength=truncate would leave 1.0% of it, the answer and the "
        "beginning and the end of what stands before it; shorten it, cut it into several rows, or raise data.max_length"
    )
    assert checked.warnings() == [
        "2 rows over data.max_length 256 (longest about 1,013 tokens): lines 62-63; data.on_overlength=truncate: "
        "in 1 the answer stays whole and the prompt loses its middle; in 1 an answer of more than 128 tokens loses its end and its stop "
        "token"
    ]


def test_with_a_tokenizer_lengths_are_those_of_the_documents():
    renderer = Renderer(make_tokenizer("gemma-3"))
    rows = [LONG[0], {"messages": [*[{"role": "user", "content": "a <eos> b"}, {"role": "assistant", "content": "c d"}] * 2]}]
    (checked,) = check([write("a.jsonl", rows)], measure=tokenised(renderer), special=renderer.encoder.find)
    samples, _ = load_samples("a.jsonl")
    documents = [renderer.documents(sample)[0] for sample in samples]
    assert sorted(checked.lengths.rows.elements()) == sorted(len(document.ids) for document in documents)
    assert checked.lengths.learned == sum(document.learned for document in documents)
    assert checked.lengths.unit == "tokens"
    assert checked.traces.markers.seen == {"<eos>": 2}


def test_what_a_chat_template_cannot_write_is_a_bad_row():
    tokenizer = make_tokenizer("smollm2")
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer)
    rows = [
        pair("q", "a"),
        {"messages": [{"role": "system", "content": "s"}, *[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]},
    ]
    (checked,) = check([write("a.jsonl", rows)], measure=tokenised(renderer))
    assert [row.line for row in checked.report.bad] == [2] and "no chat template" in checked.report.bad[0].reason


def test_every_row_of_a_part_is_looked_at_and_it_is_said():
    write("a.jsonl", LONG)
    (checked,) = check(["a.jsonl#5"])
    assert checked.report.good == 60
    assert checked.warnings() == ["every row was looked at; a.jsonl#5 takes 5 of the source's rows"]


def test_memory_kept_of_a_row_does_not_grow_with_its_length():
    digests = Digests()
    digests.begin("a")
    for row in range(1000):
        digests.add(row, row, Sample(f"a:{row}", text="x" * 1000 * (row % 3 + 1)))
    columns = (digests.exact, digests.plain, digests.question, digests.answer, digests.rows, digests.lines)
    assert sum(column.itemsize * len(column) for column in columns) == 40 * 1000


def test_names_in_a_dataset_info(tmp_path):
    Path("dataset_info.json").write_text(json.dumps({"mine": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}}}))
    Path("a.json").write_text(json.dumps([{"q": "question", "a": "answer"}]))
    (checked,) = check(["mine"])
    assert (checked.report.good, checked.report.bad) == (1, [])
    (checked,) = check(["mine"], info="nowhere.json")
    assert checked.report.bad[0].line == 0
