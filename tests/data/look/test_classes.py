import re

import pytest

from tests.shared import needs, read
from tunesmith.data.formats import conll, labels, spans
from tunesmith.data.look.classes import in_order, labels_of, types_of
from tunesmith.data.sample import Sample
from tunesmith.errors import UserError


def labelled(*answers):
    return [labels.to_sample({"text": f"text {n}", "label": answer}, f"a.csv:{n}") for n, answer in enumerate(answers, start=2)]


def answered(*answers):
    ask = {"role": "user", "content": "?"}
    return [Sample(f"a.jsonl:{n}", (ask, {"role": "assistant", "content": answer})) for n, answer in enumerate(answers, start=1)]


def tagged(*tags):
    return conll.to_sample({"tokens": ["x"] * len(tags), "tags": list(tags)}, "a.txt:1")


def test_labels_stand_in_their_order():
    found = labels_of(labelled("pos", "neg", "pos", "neutral"))
    assert (found.labels, found.counts) == (["neg", "neutral", "pos"], {"neg": 1, "neutral": 1, "pos": 2})
    assert list(found.counts) == found.labels
    assert labels_of(labelled(10, 9, 100)).labels == ["9", "10", "100"]  # numbers by their size
    assert in_order(["-1", "2.5", "01", "nan"]) == ["-1", "01", "2.5", "nan"]  # not all are numbers


def test_labels_that_look_like_one_are_told():
    notes = labels_of(labelled(*["positive"] * 9, "Positive ", "negative")).notes
    assert any("each learned as a class of its own: 'positive' 9, 'Positive ' 1" in note for note in notes)
    assert any("one row only" in note for note in notes)


def test_short_answers_are_labels_too():
    assert labels_of(answered(" yes", "no", "yes")).counts == {"no": 1, "yes": 2}


def test_a_row_without_a_label_is_left_to_whoever_renders_it():
    assert labels_of([*labelled("a", "b"), Sample("a:9", text="raw")]).counts == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "no row has a label"),
        ([Sample("a:7", text="raw")], r"no row has a label; say which .* data.columns={text: ..., label: ...}\na:7: it has no label"),
        (labelled("a", "a"), "every row has the label 'a': there is nothing to tell apart"),
        (answered(*(f"answer {n}" for n in range(1100))), "1,001 different ones in the first 1,001 rows"),
        (answered("an answer " * 20, "another one " * 20), "a:1|a text of 199 characters"),
    ],
)
def test_what_is_no_set_of_labels(samples, reason):
    with pytest.raises(UserError, match=reason):
        labels_of(samples)


def test_many_labels_in_a_column_of_their_own_are_labels():
    assert len(labels_of(labelled(*(f"intent {n}" for n in range(1100)))).labels) == 1100


def test_types_of_entities():
    marked = spans.to_sample({"text": "ab cd", "spans": [[0, 2, "per"], [3, 5, "LOC"]]}, "a.jsonl:1")
    found = types_of([tagged("B-PER", "I-PER", "B-LOC"), marked, tagged("O")])
    assert (found.labels, found.counts) == (["LOC", "PER", "per"], {"LOC": 2, "PER": 1, "per": 1})
    assert found.notes[0] == "entities of 3 types: LOC 2, PER 1, per 1; 1 of 3 rows have none"
    assert found.notes[1] == "the tags are IOB2; they are learned as BIO"
    assert "'PER' 1, 'per' 1" in found.notes[2]


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        ([("I-PER", "O"), ("I-PER", "B-PER")], "the tags are IOB1; they are learned as BIO"),
        ([("I-PER", "O"), ("O", "B-PER")], r"the tags are IOB2 \(1 sentence in which an entity begins with I-\); they"),
        ([("B-PER", "E-PER", "S-LOC")], "the tags are BIOES; they are learned as BIO"),
        ([("B-PER", "L-PER", "U-LOC")], "the tags are BILOU; they are learned as BIO"),
        ([("B-PER", "M-PER", "E-PER")], "the tags are BMES; they are learned as BIO"),
        ([("B-PER",), ("S-PER",), ("S-LOC",)], "of several schemes: IOB2 in 1 sentence, BIOES in 2 sentences; they"),
    ],
)
def test_the_scheme_that_was_found_is_said(sentences, said):
    assert re.match(f".*{said}", types_of([tagged(*tags) for tags in sentences]).notes[1])


@pytest.mark.parametrize(
    ("samples", "reason"),
    [([], "no row has marked entities"), (labelled("a"), r"a\.csv:2: no entities are marked in it"), ([tagged("O")], "is marked in 1 row")],
)
def test_no_entities(samples, reason):
    with pytest.raises(UserError, match=reason):
        types_of(samples)


@needs("cluener")
def test_real_files():
    assert len(types_of(read("cluener/dev.jsonl")[0]).labels) == 10
    assert labels_of(read("tnews/test.jsonl", columns={"text": "sentence", "label": "label"})[0]).labels[:2] == ["100", "101"]
