from dataclasses import replace

import pytest

from tests.templates import TEMPLATES, make_tokenizer
from tunesmith.data.rendering import proof
from tunesmith.data.rendering.proof import Proved, prove
from tunesmith.data.rendering.render import Document, Renderer
from tunesmith.data.sample import Sample
from tunesmith.errors import ProofFailed

TALK = tuple(
    {"role": role, "content": content}
    for role, content in [("user", "Hi"), ("assistant", "Yes, 🙂."), ("user", "Why?"), ("assistant", " So.\n")]
)
SAMPLE = Sample("a.jsonl:3", TALK)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_tokenizer("qwen2.5"))


@pytest.mark.parametrize("family", TEMPLATES)
def test_every_family_is_proved(family):
    renderer = Renderer(make_tokenizer(family))
    documents = [*renderer.documents(SAMPLE), *renderer.documents(Sample("b.txt:1", text="Some text."))]
    assert prove(documents, renderer) == Proved(documents=len(documents), spans=2, approximate=0)


def shifted(document: Document, by: int, first: int = 0) -> Document:
    (start, end), *others = document.spans
    return replace(document, spans=((start + first, end + by), *others))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda d: shifted(d, -1), "without a stop token"),
        (lambda d: shifted(d, 1), "without a stop token"),
        (lambda d: shifted(d, 0, first=-1), "would be learned say"),
        (lambda d: shifted(d, 0, first=1), "would be learned say"),
        (lambda d: replace(d, spans=(), answers=()), "none of its"),
        (lambda d: replace(d, spans=((0, len(d.ids)),), answers=d.answers[:1]), "all of its"),
        (lambda d: replace(d, answers=("No.<|im_end|>", *d.answers[1:])), "the answer is 'No.<|im_end|>'"),
        (lambda d: replace(d, spans=(d.spans[1], d.spans[0]), answers=d.answers[::-1]), "overlap"),
        (lambda d: replace(d, ids=[*d.ids[:-2], d.ids[0], d.ids[-1]]), "would be learned say"),
    ],
)
def test_a_wrong_mask_stops_the_run_and_names_the_row(renderer, spoil, reason):
    [document] = renderer.documents(SAMPLE)
    assert prove([document], renderer).spans == 2
    with pytest.raises(ProofFailed, match=reason) as caught:
        prove([document, spoil(document)], renderer)
    assert caught.value.exit_code == 3
    assert "a.jsonl:3: " in str(caught.value) and "data show" in caught.value.problems[-1]


def test_a_cut_answer_is_the_beginning_of_its_answer(renderer):
    [document] = renderer.documents(Sample("a.jsonl:3", TALK[:2]))
    [(start, end)] = document.spans
    for length in range(start + 1, end):  # also in the middle of a character
        cut = replace(document, ids=document.ids[:length], spans=((start, length),), cut=True)
        assert prove([cut], renderer).spans == 1
    with pytest.raises(ProofFailed, match="would be learned say"):
        prove([replace(document, ids=[*document.ids[: end - 3], document.ids[0]], spans=((start, end - 2),), cut=True)], renderer)


def test_a_tokenizer_that_changes_words_is_counted_not_refused():
    from tokenizers import normalizers

    tokenizer = make_tokenizer("qwen2.5")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    renderer = Renderer(tokenizer)
    documents = renderer.documents(Sample("a.jsonl:3", TALK))
    assert prove(documents, renderer) == Proved(1, 2, approximate=2)
    with pytest.raises(ProofFailed):
        prove([replace(documents[0], answers=("Other.<|im_end|>", documents[0].answers[1]))], renderer)


def test_of_very_many_documents_some_are_proved(renderer, monkeypatch):
    monkeypatch.setattr(proof, "EVERY", 10)
    monkeypatch.setattr(proof, "SOME", 5)
    [document] = renderer.documents(SAMPLE)
    assert prove([document] * 10, renderer).documents == 10
    assert prove([document] * 11, renderer).documents == 5


def test_the_list_of_rows_is_short(renderer):
    [document] = renderer.documents(SAMPLE)
    with pytest.raises(ProofFailed) as caught:
        prove([shifted(document, -1)] * 40, renderer)
    assert len(caught.value.problems) == 1 + proof.SHOWN + 1 + 1 and "more" in caught.value.problems[-2]
