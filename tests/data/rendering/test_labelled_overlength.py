"""Texts that are too long lose text, never a label, and what is left is proved like any other."""

from typing import Any

import pytest

from tests.templates import make_tokenizer
from tunesmith.data.formats import conll, labels
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.labelled_overlength import fit
from tunesmith.data.rendering.labelled_proof import prove
from tunesmith.data.rendering.overlength import GAP
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample

WORDS = [f"word{n}" for n in range(60)]
ENTITIES = ["B-X" if n % 7 == 0 else "I-X" if n % 7 == 1 else "O" for n in range(60)]
LONG = labels.to_sample({"text": "begin " + " ".join(WORDS) + " end", "label": "b"}, "a:1")
TAGGED = conll.to_sample({"tokens": WORDS, "tags": ENTITIES, "prompt": "Mark it:"}, "a:2")


def renderer(task: Any, input: Any) -> Labelled:
    return Labelled(Renderer(make_tokenizer("llama-3.2")), task, ("a", "b") if task == "classify" else ("O", "B-X", "I-X"), input)


def fitted(sample: Sample, labelled: Labelled, max_length: int, on_overlength: Any):
    found = fit(sample, labelled.documents(sample), labelled, max_length=max_length, on_overlength=on_overlength)
    prove(found.documents, labelled)
    assert all(len(document.fed.ids) <= max_length for document in found.documents)
    return found


@pytest.mark.parametrize("input", ["text", "chat"])
def test_a_text_with_one_label_loses_its_middle(input):
    labelled = renderer("classify", input)
    found = fitted(LONG, labelled, 120, "truncate")
    [document] = found.documents
    assert found.fate == "cut" and document.targets == (1,) and len(document.fed.ids) > 80
    text = labelled.tokenizer.decode(document.fed.ids)
    assert "begin word0" in text and "word59 end" in text and GAP in text and "word30" not in text


@pytest.mark.parametrize("input", ["text", "chat"])
def test_tags_lose_the_end(input):
    labelled = renderer("tag", input)
    whole = labelled.documents(TAGGED)[0]
    [document] = fitted(TAGGED, labelled, 150, "truncate").documents
    count = len(document.targets)
    assert 10 < count < 60 and document.targets == whole.targets[:count]
    assert document.fed.source == " ".join(WORDS[:count]) and len(document.fed.ids) > 130
    assert ("Mark it:" in document.fed.said) == (input == "chat")


@pytest.mark.parametrize("input", ["text", "chat"])
def test_tags_can_be_split_and_each_word_is_learned_once(input):
    labelled = renderer("tag", input)
    found = fitted(TAGGED, labelled, 150, "split")
    assert found.fate == "split" and len(found.documents) > 1
    assert " ".join(document.fed.source for document in found.documents) == TAGGED.source
    learned = [label == "O" for document in found.documents for label in (labelled.labels[target] for target in document.targets)]
    assert learned == [tag == "O" for tag in ENTITIES]


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_dropped_refused_or_kept(task):
    labelled, sample = renderer(task, "text"), LONG if task == "classify" else TAGGED
    length = len(labelled.documents(sample)[0].fed.ids)
    assert fitted(sample, labelled, length, "error").fate == "kept"  # labels are not fed and take no room
    assert fitted(sample, labelled, length - 1, "error").fate == "refused"
    dropped = fitted(sample, labelled, length - 1, "drop")
    assert (dropped.fate, dropped.documents) == ("dropped", []) and f"{length} tokens" in dropped.reason


def test_one_label_cannot_be_split():
    assert "it cannot be split" in fitted(LONG, renderer("classify", "text"), 100, "split").reason


@pytest.mark.parametrize("on_overlength", ["truncate", "split"])
def test_no_room_for_a_single_word(on_overlength):
    found = fitted(TAGGED, renderer("tag", "chat"), 20, on_overlength)
    assert found.fate == "dropped" and "leaves no room" in found.reason
