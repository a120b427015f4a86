import json
from pathlib import Path

import pytest

from tunesmith.data.names import builtin
from tunesmith.data.sample import FileReport, Sample
from tunesmith.data.sources import load_samples, pick, weigh
from tunesmith.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def pairs(count, start=0):
    return [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(start, start + count)]


def prompts(samples):
    return [sample.messages[0]["content"] for sample in samples]


def test_rows_keep_their_place_and_the_report_says_the_shape():
    samples, reports = load_samples(write("data/a.jsonl", ["\n", *pairs(2)]))
    assert [sample.origin for sample in samples] == ["data/a.jsonl:2", "data/a.jsonl:3"]
    assert reports == [FileReport("data/a.jsonl", rows=2, good=2, format="prompt", encoding="utf-8")]


def test_a_folder_of_several_shapes():
    write("data/a.jsonl", pairs(1))
    write("data/b.json", ['[{"instruction": "i", "output": "o"}]'])
    write("data/c.txt", ["a document"])
    write("data/d.csv", ["prompt,completion\n", "q9,a9\n"])
    samples, reports = load_samples("data")
    assert [report.format for report in reports] == ["prompt", "alpaca", "text", "prompt"]
    assert samples[2] == Sample("data/c.txt:1", text="a document")
    assert samples[3].origin == "data/d.csv:2"


def test_bad_rows_stop_with_all_their_places():
    write("a.jsonl", [*pairs(1), {"prompt": "q", "completion": ""}, "{broken\n", *pairs(1)])
    write("b.jsonl", [{"messages": [{"role": "bot", "content": "x"}]}])
    with pytest.raises(UserError) as error:
        load_samples([("a.jsonl", 1.0), ("b.jsonl", 1.0)])
    lines = error.value.problems
    assert lines[0] == "a.jsonl:2: 'completion' is empty: there is nothing to learn"
    assert lines[1].startswith("a.jsonl:3: not valid JSON at column 2")
    assert lines[2].startswith("b.jsonl:1: message 1: unknown role 'bot'")
    assert lines[3] == "3 bad rows of 5: mend them, or leave them out with data.on_bad_row=skip"


def test_many_bad_rows_share_lines_by_reason():
    write("a.jsonl", [*pairs(1), *[{"prompt": "q", "completion": ""}] * 30, "null\n"])
    with pytest.raises(UserError) as error:
        load_samples("a.jsonl")
    assert error.value.problems == (
        "a.jsonl:2: 'completion' is empty: there is nothing to learn (and lines 3, 4, 5, 6, 7 and 24 more)",
        'a.jsonl:32: null, not an object: a row is {"name": value, ...}',
        "31 bad rows of 32: mend them, or leave them out with data.on_bad_row=skip",
    )


def test_no_more_than_twenty_reasons_are_listed():
    write("a.jsonl", [*pairs(1), *[{"prompt": "q", "completion": i} for i in range(25)]])
    with pytest.raises(UserError) as error:
        load_samples("a.jsonl")
    assert len(error.value.problems) == 22
    assert error.value.problems[20] == "and 5 more bad rows"


def test_bad_rows_are_skipped_and_counted():
    samples, reports = load_samples(write("a.jsonl", [*pairs(2), "null\n", {"prompt": "q"}]), on_bad_row="skip")
    assert (len(samples), reports[0].rows, reports[0].good, [row.line for row in reports[0].bad]) == (2, 4, 2, [3, 4])


@pytest.mark.parametrize("content", ["null\n", ""])
def test_nothing_usable_is_an_error_even_when_skipping(content):
    write("a.jsonl", [content])
    with pytest.raises(UserError, match=r"a\.jsonl: (no usable rows|the file is empty)"):
        load_samples("a.jsonl", on_bad_row="skip")


def test_a_file_of_no_known_shape_is_an_error_even_when_skipping():
    write("a.jsonl", pairs(1))
    write("b.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError) as error:
        load_samples([("a.jsonl", 1.0), ("b.jsonl", 1.0)], on_bad_row="skip")
    assert "b.jsonl:1: columns question, answer are no shape" in str(error.value)
    assert "data.columns={prompt: question, completion: answer}" in str(error.value)


def test_every_missing_file_is_named_at_once():
    write("data/train.jsonl", pairs(1))
    with pytest.raises(UserError) as error:
        load_samples([("data/trian.jsonl", 1.0), ("data/train.jsonl", 1.0), ("nowhere/x.jsonl", 1.0)])
    assert len(error.value.problems) == 2
    with pytest.raises(UserError, match="no training data"):
        load_samples("")


def test_rows_of_another_known_shape_are_read_and_said():
    write("a.jsonl", [*pairs(3), {"instruction": "i", "output": "o"}, {"conversations": [{"from": "human", "value": "x"}]}])
    samples, reports = load_samples("a.jsonl", on_bad_row="skip")
    assert prompts(samples) == ["q0", "q1", "q2", "i"]
    assert reports[0].warnings == ["1 row of another shape, alpaca, in a file of shape prompt: line 4"]
    assert reports[0].bad[0].reason.startswith("the conversation ends with a user message")


def test_raw_text_among_conversations_is_a_bad_row():
    write("a.jsonl", [*pairs(3), {"text": "every token of this would be learned"}])
    with pytest.raises(UserError, match=r"a\.jsonl:4: no 'prompt' \(the row has text\)"):
        load_samples("a.jsonl")


def test_a_format_that_is_asked_for_counts_for_every_row():
    write("a.jsonl", [{"text": "t", "label": 1}, {"instruction": "i", "output": "o"}])
    samples, reports = load_samples("a.jsonl", format="text", on_bad_row="skip")
    assert (samples[0].text, reports[0].format, reports[0].bad[0].line) == ("t", "text", 2)
    with pytest.raises(UserError, match="no format 'txet'; did you mean 'text'"):
        load_samples("a.jsonl", format="txet")


def test_columns_and_template():
    write(
        "a.json",
        [json.dumps([{"userInput": {"text": "hi"}, "labels": [{"slot": "x"}], "messages": "of theirs"}, {"userInput": {"text": "ho"}}])],
    )
    samples, reports = load_samples("a.json", columns={"prompt": "userInput.text", "completion": "labels"})
    assert [sample.messages[1]["content"] for sample in samples] == ['[{"slot":"x"}]', "[]"]
    assert "'labels', a list or object wherever it stands, is absent or empty in 1 row: read there as []" in reports[0].warnings[0]
    write("b.csv", ["mr,ref\n", "a,b\n"])
    samples, _ = load_samples("b.csv", columns={"completion": "ref"}, prompt="Say: {mr}")
    assert [message["content"] for message in samples[0].messages] == ["Say: a", "b"]


def test_an_absent_column_names_the_row():
    write("a.jsonl", [{"q": "x", "a": "y"}, {"q": "x"}])
    with pytest.raises(UserError, match=r"a\.jsonl:2: data.columns: no column 'a'; the row has q"):
        load_samples("a.jsonl", columns={"prompt": "q", "completion": "a"})
    with pytest.raises(UserError, match=r"a\.jsonl:1: data.columns: no column 'quest'"):
        load_samples("a.jsonl", columns={"prompt": "quest", "completion": "a"})
    with pytest.raises(UserError, match="needs completion too"):
        load_samples("a.jsonl", columns={"prompt": "q"})


def test_a_part_is_always_the_same_in_order_and_within_a_larger_part():
    write("a.jsonl", pairs(100))
    small, large = (prompts(load_samples(f"a.jsonl#{count}")[0]) for count in (10, 40))
    assert small == prompts(load_samples("a.jsonl#10")[0])
    assert set(small) < set(large)
    assert large == sorted(large, key=lambda name: int(name[1:]))
    assert large != [f"q{i}" for i in range(40)]
    samples, reports = load_samples("a.jsonl#500")
    assert len(samples) == 100
    assert reports[0].warnings == ["a.jsonl#500: only 100 usable rows are there"]


def test_weights():
    samples = [Sample(f"a:{i}", text="x") for i in range(10)]
    assert weigh(samples, 1.0) == samples
    assert weigh(samples, 2.0) == samples * 2
    half = weigh(samples, 0.5)
    assert len(half) == 5 and half == [sample for sample in samples if sample in half]
    assert weigh(samples, 2.5) == samples * 2 + half
    assert half != pick(samples, 5, "sample")


def test_sources_are_weighted_one_by_one():
    write("a.jsonl", pairs(4))
    write("b.jsonl", pairs(2, start=10))
    samples, reports = load_samples([("a.jsonl#3", 2.0), ("b.jsonl", 0.5)])
    assert len(samples) == 7
    assert [report.good for report in reports] == [4, 2]


def test_builtin_rows(monkeypatch):
    monkeypatch.setitem(builtin.BUILTIN, "pairs", lambda: pairs(3))
    samples, reports = load_samples("builtin:pairs#2")
    assert len(samples) == 2
    assert {sample.origin for sample in samples} < {f"builtin:pairs:{line}" for line in (1, 2, 3)}
    assert (reports[0].file, reports[0].rows, reports[0].format) == ("builtin:pairs", 3, "prompt")


@pytest.mark.skipif(not (SHARED / "restaurant8k_slots").is_dir(), reason="needs the shared data sets")
def test_real_rows_through_columns():
    samples, reports = load_samples(
        str(SHARED / "restaurant8k_slots/test.json"), columns={"prompt": "userInput.text", "completion": "labels"}
    )
    assert (len(samples), reports[0].bad) == (1000, [])
    assert sum(sample.messages[1]["content"] == "[]" for sample in samples) == 369
    lines = (SHARED / "restaurant8k_slots/test.json").read_text(encoding="utf-8").split("\n")
    for sample in samples[::100]:
        assert lines[int(sample.origin.rpartition(":")[2]) - 1] == " {"
