import pytest

from tunesmith.data.columns import Columns, parse
from tunesmith.data.fields import DOUBT
from tunesmith.data.formats import FORMATS
from tunesmith.data.sample import RowError
from tunesmith.data.shape import ambiguous, guess, known, looks_like, of_row, of_rows, unknown
from tunesmith.errors import UserError

NONE = Columns({})


def test_known_formats():
    known("auto")
    known("alpaca")
    with pytest.raises(
        UserError,
        match=r"did you mean 'alpaca'.*there are auto, preference, messages, sharegpt, alpaca, prompt, conll, spans, labels, text",
    ):
        known("alpacca")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "a", "output": "b", "text": "whole"}, "alpaca"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": "p", "completion": "c"}, "messages"),
        ({"prompt": "p", "completion": "c"}, "prompt"),
        ({"text": "t", "url": "u"}, "text"),
        ({"text": "t", "label": 1}, "labels"),
        ({"text": "t", "label": "news", "messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"text": "t", "label": True}, ""),  # a class, or a judgement?
        ({"text": "t", "label": 1, "label_text": "bad"}, ""),  # which of them?
        ({"text": "t", "summary": "s"}, ""),
        ({"question": "q"}, ""),
        ({"prompt": "p", "completion": "c", "label": False}, "preference"),
        ({"prompt": "p", "completion": "c", "label": "False"}, "preference"),
        ({"instruction": "p", "output": "c", "kto_tag": True}, "preference"),
        ({"prompt": "p", "chosen": "c"}, "preference"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "sharegpt"),
        ({"tokens": ["a"], "tags": ["O"]}, "conll"),
        ({"tokens": ["a"], "tags": ["NN"]}, ""),
        ({"text": "ab", "entities": [[0, 1, "X"]]}, "spans"),
    ],
)
def test_of_row(row, name):
    assert of_row(row) == name


def test_named_columns_decide_before_others():
    row = {"prompt": "q", "completion": "a", "messages": [{"role": "user", "content": "x"}]}
    assert of_row(row) == "messages"
    assert of_row(row, Columns({"prompt": "x", "completion": "y"})) == "prompt"
    assert of_row({"text": "t", "label": 1}, Columns({"text": "body"})) == "labels"
    assert of_row({"text": "t", "url": "u"}, Columns({"text": "body"})) == "text"
    assert of_row({"text": "t", "label": "a long label" * 20}, Columns({"text": "body", "label": "kind"})) == "labels"
    assert of_row({"text": "ab", "label": [[0, 1, "X"]]}, Columns({"text": "body", "label": "marks"})) == "spans"
    kept = {"prompt": "q", "completion": "c", "rejected": "r"}
    assert of_row(kept, Columns({"prompt": "q", "completion": "chosen"})) == "prompt"


def test_of_rows_is_what_most_are():
    alpaca, text = {"instruction": "a", "output": "b"}, {"text": "t"}
    assert of_rows([text, alpaca, alpaca, {"x": 1}]) == "alpaca"
    assert of_rows([{"x": 1}]) == ""


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"review": "t", "label": True}, "the class of the text, or a judgement.*{prompt: review, completion: label}"),
        ({"tokens": ["a"], "pos": ["NN"]}, "tagged tokens whose tags are not those of entities.*{prompt: tokens, completion: pos}"),
    ],
)
def test_foreign_shapes_have_names(row, words):
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(looks_like(row))
    assert looks_like(row) in unknown([row], NONE)


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"id": 1, "question": "q", "answer": "a"}, "question", "answer"),
        ({"query": "q", "response": "a"}, "query", "response"),
        ({"input": "q", "output": "a"}, "input", "output"),
        ({"text": "t", "label": "l"}, "text", "label"),
        ({"mr": "m", "ref": "r"}, "mr", "ref"),
        ({"db": "d", "question": "q", "query": "select"}, "question", "query"),
        ({"userInput": {"text": "t"}, "labels": []}, "userInput.text", "labels"),
        ({"fname": "f", "dialogue": "d", "summary": "s", "topic": "t"}, "dialogue", "summary"),
        ({"Question": "q", "Answer": "a"}, "Question", "Answer"),
    ],
)
def test_guess_by_names(row, prompt, completion):
    assert guess([row]) == {"prompt": prompt, "completion": completion}
    assert f"data.columns={{prompt: {prompt}, completion: {completion}}}" in unknown([row], NONE)


def test_guess_by_values_finds_the_label_and_the_longest_text():
    rows = [{"column1": str(i % 3), "column2": f"title {i}", "column3": f"a long text about {i}"} for i in range(30)]
    assert guess(rows) == {"prompt": "column3", "completion": "column1"}
    assert guess([{"x": "a", "y": "b"}]) is None
    assert guess([row | {"column4": "", "column5": ""} for row in rows]) is None


def test_unknown_names_columns_shapes_and_misspellings():
    text = unknown([{"instrution": "a", "outptu": "b"}], NONE)
    for words in (
        "columns instrution, outptu are no shape",
        "'instrution' is close to 'instruction'",
        "'outptu' is close to 'output'",
        "alpaca (instruction, output)",
    ):
        assert words in text


def test_unknown_with_columns_named_says_what_is_missing():
    assert "gives prompt, but the shape prompt needs completion too: add data.columns={completion: THEIR_COLUMN}" in unknown(
        [{"q": 1}], parse({"prompt": "q"}, None)
    )
    assert unknown([{"q": 1}], parse(None, "{q}")).startswith("data.prompt gives prompt")
    assert "which no shape has together" in unknown([{"q": 1}], parse({"text": "q", "output": "q"}, None))


def test_several_columns_that_may_be_it_are_named():
    assert "the answer (label, label_desc): say which, such as data.columns={text: sentence, label: label_desc}" in unknown(
        [{"label": "1", "label_desc": "x", "sentence": "s"}], NONE
    )
    assert 'data.prompt="{title}\\n{body}", or say which: data.columns={text: body, label: label}' in unknown(
        [{"title": "t", "body": "b", "label": "x"}], NONE
    )
    assert ambiguous({"title": "t", "body": "b", "label": "x", "answer": "a"}) == ""


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"instruction": "q", "output": "a"}, "alpaca"),
        ({"prompt": "q", "completion": "a"}, "prompt"),
    ],
)
def test_judgements_beside_answers(row, name):
    assert of_row(row | {"label": True}) == of_row(row | {"label": "false"}) == "preference"
    with pytest.raises(RowError, match="KTO"):  # asked for as an answer all the same
        FORMATS[name].to_sample(row | {"label": True}, "a:1")
    assert of_row(row | {"label": 1}) == name
    assert FORMATS[name].to_sample(row | {"label": 1}, "a:1").notes == (DOUBT,)
    assert FORMATS[name].to_sample(row | {"label": "greeting"}, "a:1").notes == ()
