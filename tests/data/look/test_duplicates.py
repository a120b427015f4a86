import dataclasses

import numpy as np
import pytest

from tunesmith.data.look.duplicates import Digests, as_json, claim, find, findings, plain
from tunesmith.data.sample import Sample


def chat(question, answer, **more):
    return Sample("a:1", ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), **more)


def found(*files):
    digests = Digests()
    for number, samples in enumerate(files):
        digests.begin(f"file{number}")
        for row, sample in enumerate(samples, start=1):
            digests.add(row, 10 * row, sample)
    return find(digests)


def said(*files):
    return [[finding.said() for finding in findings(repeats)] for repeats in found(*files)]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Hello, World!", "hello world"),
        ("ＡＢＣ１２３：好！", "abc123:好"),
        ("a\n\nb", "a b"),
        ("“quoted” — text…", '"quoted" text'),
        ("你好，世界。", "你好 世界"),
    ],
)
def test_writings_of_one_text(a, b):
    assert plain(a) == plain(b)


@pytest.mark.parametrize(("a", "b"), [("1+1", "1-1"), ("a<b", "a>b"), ("50%", "50"), ("cafe", "café"), ("x*y", "x/y")])
def test_texts_that_differ(a, b):
    assert plain(a) != plain(b)


def test_a_border_between_question_and_answer_counts():
    assert said([chat("a b", "c"), chat("a", "b c")]) == [[]]


def test_one_file():
    rows = [chat("q", "a"), chat("q", "a"), chat("Q!", "A."), chat("q", "other"), chat("r", "a"), chat("q", "other")]
    assert said(rows) == [
        [
            "2 exact duplicates of earlier rows: lines 20, 60",
            "1 row equal to earlier ones but for case, spaces and punctuation: line 30 (earlier: line 10)",
            "1 row with an earlier row's prompt and another answer: line 40 (earlier: line 10)",
        ]
    ]


def test_several_files():
    train = [chat("q1", "a"), chat("q2", "b"), chat("q3", "c")]
    test = [chat("Q2", "B"), chat("q3", "c"), chat("new", "c"), chat("q1", "another")]
    other = [chat("new", "c"), chat("q3", "c")]
    first, second, third = said(train, test, other)
    assert first == []
    assert second == [
        "1 row also in file0: line 20 (there: line 30); rows for a test must not be learned",
        "1 row also in file0, but for case, spaces and punctuation: line 10 (there: line 20); rows for a test must not be learned",
        "1 row whose prompt stands in file0 too, with another answer: line 40 (there: line 10); rows for a test must not be learned",
    ]
    assert third == [
        "1 row also in file0: line 20 (there: line 30); rows for a test must not be learned",
        "1 row also in file1: line 10 (there: line 30); rows for a test must not be learned",
    ]


def test_raw_texts_have_no_prompt_to_conflict_about():
    assert said([Sample("a:1", text="x"), Sample("a:2", text="y"), Sample("a:3", text="x")]) == [
        ["1 exact duplicate of earlier rows: line 30"]
    ]


def test_preferences_conflict_where_they_prefer_the_other_one():
    pair = chat("q", "good", rejected=({"role": "assistant", "content": "bad"},))
    other = chat("q", "good", rejected=({"role": "assistant", "content": "worse"},))
    swapped = chat("q", "bad", rejected=({"role": "assistant", "content": "good"},))
    [repeats] = found([pair, other, swapped])
    assert (repeats.exact.here.count, repeats.conflicts.here.ranges()) == (0, "30")
    liked = chat("q", "a", desirable=True)
    [repeats] = found([liked, chat("q", "b", desirable=False), dataclasses.replace(liked, desirable=False)])
    assert repeats.conflicts.here.ranges() == "30"


def test_tools_thinking_and_calls_are_part_of_a_row():
    tools = ({"type": "function", "function": {"name": "f"}},)
    assert claim(chat("q", "a", tools=tools))[0] != claim(chat("q", "a"))[0]
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}
    other = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 2}}}]}
    question = {"role": "user", "content": "q"}
    assert claim(Sample("a", (question, call)))[1] != claim(Sample("a", (question, other)))[1]
    assert claim(chat("q", "a"))[1] != claim(Sample("a", (question, {"role": "assistant", "content": "a", "reasoning_content": "r"})))[1]


def test_json_has_numbers_and_lines():
    [_, repeats] = found([chat("q", "a")], [chat("q", "a"), chat("q", "a")])
    nothing = {"rows": 0, "lines": "", "earlier_lines": ""}
    assert as_json(repeats) == {
        "duplicates": {"exact": {"rows": 1, "lines": "20", "earlier_lines": "10"}, "alike": nothing},
        "conflicts": nothing,
        "leaks": [{"file": "file0", "how": "exact", "rows": 2, "lines": "10-20", "earlier_lines": "10"}],
    }


def test_an_empty_file_among_others_and_no_rows_at_all():
    assert said([], [chat("q", "a")], [], [chat("q", "a")])[3] == [
        "1 row also in file1: line 10 (there: line 10); rows for a test must not be learned"
    ]
    assert said([]) == [[]]


def test_many_rows_agree_with_a_dictionary():
    rng = np.random.default_rng(0)
    answers = rng.integers(0, 200, 2000)
    [repeats] = found([chat(str(n % 50), str(answer)) for n, answer in enumerate(answers)])
    seen, twice = set(), []
    for row, (n, answer) in enumerate(enumerate(answers), start=1):
        key = (n % 50, int(answer))
        if key in seen:
            twice.append(10 * row)
        seen.add(key)
    lines = [line for a, b in zip(repeats.exact.here.firsts, repeats.exact.here.lasts, strict=True) for line in range(a, b + 1, 10)]
    assert lines == twice and repeats.exact.here.count == len(twice)
