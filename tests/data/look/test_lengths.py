import random

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.look.lengths import Length, Lengths, Limit, estimate, estimated, rounded, tokenised, words
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import RowError, Sample


def chat(*contents, **answer):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Sample("a.jsonl:1", (*messages[:-1], messages[-1] | answer))


def added(samples, limit=None, measure=estimated):
    lengths = Lengths(limit or Limit(), measure is not estimated)
    for row, (sample, length) in enumerate(zip(samples, measure(samples), strict=True), start=1):
        lengths.add(row, row, sample, length)
    return lengths


def test_the_rule_of_thumb():
    assert (estimate(""), estimate("abc"), estimate("abcd"), estimate("abcde")) == (0, 1, 1, 2)
    assert estimate("中文字符") == 4 and estimate("caf" + "é") == 2
    [length] = estimated([chat("a" * 40, "中" * 10)])
    assert (length.tokens, length.learned, length.all, length.answer, length.answers) == (30, 10, 50, 15, 1)
    [text] = estimated([Sample("a:1", text="a" * 400)])
    assert (text.tokens, text.learned, text.all, text.raw) == (100, 400, 400, True)


def test_history_is_fed_and_not_learned_and_tools_count():
    row = chat("q", "old", "r", "new")
    row = Sample("a:1", (row.messages[0], row.messages[1] | {"learn": False}, *row.messages[2:]))
    [length] = estimated([row])
    assert (length.learned, length.all, length.answers) == (3, 8, 1)
    tools = ({"type": "function", "function": {"name": "f" * 100}},)
    [longer] = estimated([Sample("a:1", row.messages, tools)])
    assert longer.tokens > length.tokens + 25


def test_all_that_a_message_says():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert words({"role": "assistant", "content": "b", "reasoning_content": "a", "tool_calls": [call]}) == (
        'a\nb[{"name": "f", "arguments": {"x": 1}}]'
    )


def test_percentiles_are_those_of_the_sorted_list():
    numbers = random.Random(0).choices(range(1, 900), k=501)
    lengths = added([Sample("a:1", text="x" * 4 * number) for number in numbers])
    for share in (0.5, 0.9, 0.99):
        assert lengths.percentile(share) == sorted(numbers)[-(-int(share * 1000) * 501 // 1000) - 1]
    assert (lengths.longest, lengths.tokens) == (max(numbers), sum(numbers))
    assert Lengths(Limit(), True).percentile(0.5) == 0


def test_long_lengths_are_kept_to_three_digits_and_no_percentile_is_over_the_longest():
    assert (rounded(999), rounded(1004), rounded(123_456)) == (999, 1000, 123_000)
    lengths = added([Sample("a:1", text="x" * 4 * 1788)])
    assert lengths.rows == {1790: 1} and lengths.percentile(0.99) == 1788


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (
            "truncate",
            "in 1 nothing is lost: raw text is split; in 1 the answer stays whole and the prompt loses its middle; "
            "in 1 an answer of more than 50 tokens loses its end and its stop token; "
            "in 1 the first answers that fit are learned, the later ones go",
        ),
        ("drop", "leaves them out"),
        ("error", "stops the run at them"),
        ("split", "in 1 nothing is lost: raw text is split; 3 stop the run: conversations are not split, take truncate or drop"),
    ],
)
def test_what_becomes_of_long_rows(mode, said):
    rows = [
        Sample("a:1", text="x" * 4000),
        chat("x" * 2000, "a"),
        chat("q", "x" * 2000),
        chat("q", "x" * 300, "r", "x" * 300),
        chat("q", "a"),
    ]
    [finding] = added(rows, Limit(100, mode)).findings()
    assert finding.said().startswith("4 rows over data.max_length 100 (longest about 1,000 tokens): lines 1-4; ")
    assert finding.said().endswith(said)


def test_hopeless_rows_are_bad_and_not_counted_among_the_others():
    lengths = added([chat("x" * 40_000, "a"), chat("q", "x" * 40_000), Sample("a.jsonl:3", text="x" * 40_000), chat("q", "a")], Limit(100))
    assert [row.line for row in lengths.hopeless] == [1, 2] and lengths.rows.total() == 2
    assert "about 10,011 tokens, 100 times data.max_length 100" in lengths.hopeless[0].reason
    assert "the first 50 tokens or more of an answer of 10,005, without its end" in lengths.hopeless[1].reason
    [dropped] = added([chat("x" * 40_000, "a")], Limit(100, "drop")).hopeless
    assert "data.on_overlength=drop would not learn it" in dropped.reason


def test_with_a_tokenizer_the_figures_are_those_of_the_documents():
    renderer = Renderer(make_tokenizer("qwen3"))  # whose history is rewritten: two documents a row
    row = chat("Hi", "Yes.", "Why?", "So.")
    [length] = tokenised(renderer)([row])
    documents = renderer.documents(row)
    assert len(documents) == 2 and isinstance(length, Length)
    assert length.tokens == max(len(document.ids) for document in documents)
    assert length.learned == sum(document.learned for document in documents)
    assert (length.all, length.answers) == (sum(len(document.ids) for document in documents), 2)
    [bad] = tokenised(Renderer(make_tokenizer("gemma-3")))([Sample("a:1", (*chat("Hi").messages, *chat("Hi", "Yes.").messages))])
    assert isinstance(bad, RowError)


def test_json():
    document = added([chat("x" * 60, "y" * 20), chat("q", "a")], Limit(20)).as_json()
    assert document["lengths"]["unit"] == "tokens, estimated" and document["lengths"]["over"]["lines"] == "1"
    assert document["learned"] == {"unit": "characters", "learned": 21, "all": 82, "share": 0.2561}
    assert document["histogram"] == {"edges": [0, 16, 20, 32], "counts": [1, 0, 1]}
