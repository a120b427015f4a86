"""A proof is worth what it finds: each of these documents is wrong in one way."""

import random
from dataclasses import replace

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.formats import conll, labels, spans
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.labelled_proof import prove
from tunesmith.data.rendering.proof import Proved
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import ProofFailed

RENDERER = Renderer(make_tokenizer("qwen2.5"))
CLASSIFY, TAG = Labelled(RENDERER, "classify", ("a", "b")), Labelled(RENDERER, "tag", ("O", "B-X", "I-X"))
[LABEL] = CLASSIFY.documents(labels.to_sample({"text": "some words", "label": "b"}, "f:1"))
[TAGS] = TAG.documents(conll.to_sample({"tokens": ["some", "words", "here"], "tags": ["B-X", "I-X", "O"]}, "f:2"))


def wrong(document, **fed):
    return replace(document, fed=replace(document.fed, **fed))


def test_what_is_right_is_proved():
    assert prove([LABEL], CLASSIFY) == Proved(1, 1, 0)
    assert prove([TAGS], TAG) == Proved(1, 3, 0)
    assert prove([], TAG) == Proved(0, 0, 0)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (wrong(LABEL, ids=LABEL.fed.ids[1:], positions=(len(LABEL.fed.ids) - 2,)), "the tokens that would be fed say 'ome words'"),
        (wrong(LABEL, positions=(0,)), "does not stand at the last token"),
        (replace(LABEL, targets=(0,)), "its label is 'b', 'a' would be learned"),
        (replace(LABEL, targets=(2,)), "label 2 of a head with 2"),
        (replace(LABEL, targets=()), "0 labels for the places"),
        (replace(TAGS, targets=(1, 0, 0)), "'some words' is X, but would not be learned"),
        (replace(TAGS, targets=(1, 2, 1)), "'here' would be learned as X, which the row does not say"),
        (wrong(TAGS, positions=tuple(position - 1 for position in TAGS.fed.positions[:2]) + TAGS.fed.positions[2:]), "would stand behind"),
        (wrong(TAGS, positions=TAGS.fed.positions[::-1]), "3 labels for the places"),
    ],
)
def test_what_is_wrong_is_found(document, reason):
    with pytest.raises(ProofFailed, match=reason) as failed:
        prove([document], CLASSIFY if document.meant == "b" else TAG)
    assert f"{document.origin}: " in failed.value.problems[1]


def test_spans_that_words_cannot_say_exactly_are_no_failure():
    rows = [[[0, 3, "X"]], [[0, 5, "X"], [2, 4, "X"]], [[0, 1, "X"], [1, 2, "X"]], [[4, 5, "X"]], [[0, 5, "X"]]]
    for found in rows:
        prove(TAG.documents(spans.to_sample({"text": "some words", "spans": found}, "f:1")), TAG)


PIECES = [
    "a",
    "e\u0301",
    " ",
    "  ",
    "\n",
    "\u00a0",
    "\u3000",
    "京",
    "（",
    "👩\u200d👩",
    "हि",
    "กิ",
    "\ufeff",
    "\ufffd",
    "'s",
    ").",
    "2024",
    "İ",
    "한",
]
PIECES += ["<|im_end|>", "</s>", "<think>", "\ue0d0\ue0d1", "\x00", "\r\n", "▁", "Ġ", "<0x0A>", "[INST]"]


@pytest.mark.parametrize("family", ["qwen3", "gemma-3", "mistral-v3", "phi-3"])
@pytest.mark.parametrize("input", ["text", "chat"])
def test_no_text_is_too_strange_to_be_proved(family, input):
    """Whatever people write: a proof that failed for one of a million rows would stop the run."""
    draw, renderer = random.Random(0), Renderer(make_tokenizer(family))
    classify, tag = Labelled(renderer, "classify", ("a", "b"), input), Labelled(renderer, "tag", ("O", "B-X", "I-X"), input)
    for _ in range(60):
        text = "x" + "".join(draw.choices(PIECES, k=draw.randint(1, 20)))
        marked = [[begin, begin + draw.randint(1, 3), "X"] for begin in draw.sample(range(len(text) + 3), 3) if begin + 3 <= len(text)]
        prove(tag.documents(spans.to_sample({"text": text, "spans": marked}, "f:1")), tag)
        prove(classify.documents(labels.to_sample({"text": text, "label": "a"}, "f:1")), classify)
