from typing import Any

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.rendering.overlength import GAP, fit, without_middle
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample

SYSTEM = {"role": "system", "content": "Be short."}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


def chat(*contents: str, system: bool = True) -> Sample:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Sample("a.jsonl:7", tuple([SYSTEM] * system + messages))


def fitted(renderer: Renderer, sample: Sample, max_length: int, how: Any = "truncate"):
    return fit(sample, renderer.documents(sample), renderer, max_length=max_length, on_overlength=how)


def said(renderer: Renderer, document) -> list[str]:
    return [renderer.tokenizer.decode(document.ids[start:end]) for start, end in document.spans]


LONG = "Sum this up. " + "word " * 200 + "What is it about?"


def test_what_fits_stays(renderer):
    sample = chat("Hi", "Yes.")
    documents = renderer.documents(sample)
    length = len(documents[0].ids)
    for how in ("truncate", "drop", "error"):
        assert fitted(renderer, sample, length, how).documents == documents
        assert fitted(renderer, sample, length, how).fate == "kept"


def test_a_long_question_loses_its_middle_and_the_answer_stays_whole(renderer):
    sample = chat(LONG, "It is about words.")
    result = fitted(renderer, sample, 100)
    [document] = result.documents
    assert result.fate == "cut" and not document.cut
    assert 80 <= len(document.ids) <= 100  # no more is taken than is needed
    assert said(renderer, document) == ["It is about words.<|im_end|>"]
    text = renderer.tokenizer.decode(document.ids)
    assert "Be short." in text and "Sum this up. word" in text and GAP in text and "What is it about?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\nIt is about words.<|im_end|>")


def test_turns_that_do_not_fit_go_whole(renderer):
    sample = chat("Hi", "Yes.", "Why?", "So.", LONG, "It is about words.")
    whole = renderer.documents(sample)[0]
    result = fitted(renderer, sample, whole.spans[2][0])
    [document] = result.documents
    assert result.fate == "cut" and said(renderer, document) == ["Yes.<|im_end|>", "So.<|im_end|>"]
    assert document.ids == whole.ids[: whole.spans[1][1]] and document.turns == (2, 4) and len(document.answers) == 2


def test_only_an_answer_of_more_than_half_loses_its_end(renderer):
    result = fitted(renderer, chat(LONG, "No end " * 100), 120)
    [document] = result.documents
    [(start, end)] = document.spans
    assert document.cut and result.fate == "cut"
    assert end == len(document.ids) == 120 and start <= 60
    assert document.ids[-1] not in renderer.stops
    assert ("No end " * 100).startswith(said(renderer, document)[0])


def test_old_exchanges_go_before_the_asked_one_is_shortened(renderer):
    talk = chat("First " * 50, "One.", "Second " * 20, "Two.")
    messages = tuple(message | {"learn": False} if message["content"] == "One." else message for message in talk.messages)
    sample = Sample("a.jsonl:7", messages)
    second = len(renderer.documents(chat("Second " * 20, "Two."))[0].ids)
    [document] = fitted(renderer, sample, second).documents
    text = renderer.tokenizer.decode(document.ids)
    assert "First" not in text and "Be short." in text and "Second " * 19 in text and said(renderer, document) == ["Two.<|im_end|>"]


def test_turns_that_are_documents_of_their_own_go_the_same_way():
    renderer = Renderer(make_tokenizer("qwen3"))
    sample = chat("Hi", "Yes.", LONG, "It is about words.", system=False)
    documents = renderer.documents(sample)
    assert len(documents) == 2
    result = fitted(renderer, sample, 100)
    assert result.fate == "cut" and result.documents == documents[:1]


def test_a_row_that_nothing_can_save_is_reported(renderer):
    sample = Sample("a.jsonl:7", ({"role": "system", "content": LONG}, *chat("Hi", "Yes.", system=False).messages))
    result = fitted(renderer, sample, 64)
    assert (result.documents, result.fate) == ([], "dropped")
    assert result.reason.startswith("nothing is left to shorten") and "system prompt" in result.reason


def test_drop_and_error(renderer):
    sample = chat(LONG, "It is about words.")
    tokens = len(renderer.documents(sample)[0].ids)
    dropped, refused = fitted(renderer, sample, 100, "drop"), fitted(renderer, sample, 100, "error")
    assert (dropped.documents, dropped.fate) == ([], "dropped") and f"{tokens} tokens" in dropped.reason
    assert (refused.documents, refused.fate) == ([], "refused") and f"{tokens} tokens" in refused.reason
    split = fitted(renderer, sample, 100, "split")
    assert split.fate == "refused" and "split is for raw text" in split.reason


@pytest.mark.parametrize("family", ["qwen2.5", "mistral"])
@pytest.mark.parametrize("how", ["split", "truncate"])
@pytest.mark.parametrize("max_length", [16, 17, 5000])
def test_a_text_is_split_and_every_token_is_learned_once(family, how, max_length):
    renderer = Renderer(make_tokenizer(family))
    sample = Sample("a.txt:1", text=LONG)
    [whole] = renderer.documents(sample)
    result = fitted(renderer, sample, max_length, how)
    assert result.fate == ("split" if max_length < 5000 else "kept")
    assert all(2 <= len(document.ids) <= max_length for document in result.documents)
    learned = [token for document in result.documents for start, end in document.spans for token in document.ids[start:end]]
    assert learned == whole.ids[1:]
    firsts = {document.ids[0] for document in result.documents}
    assert firsts == {renderer.tokenizer.bos_token_id} if family == "mistral" else whole.ids[0] in firsts


def test_without_middle_keeps_both_ends():
    assert without_middle("one two three four five six", 14) == "one two … six"
    assert without_middle("abcdefghij", 4) == "ab … ij"
    assert without_middle("abc", 0) == "…"
