"""What is fed of a text and where its labels stand; the oracle of prompts is `tokenizer.apply_chat_template`."""

import itertools
import pickle
from functools import cache
from typing import Any

import pytest

from tests.templates import ADDS_BOS, TEMPLATES, make_tokenizer
from tunesmith.data.formats import conll, labels, spans
from tunesmith.data.rendering import notes
from tunesmith.data.rendering.labelled import Labelled, label_of, part_of, text_of
from tunesmith.data.rendering.labelled_proof import prove
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import RowError, Sample
from tunesmith.errors import UserError

CLASSES = ("negative", "positive")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ROW = labels.to_sample({"text": "It was good.", "label": "positive"}, "a.jsonl:1")
SENTENCE = conll.to_sample({"tokens": ["Angela", "Merkel", "in", "Paris", "."], "tags": ["B-PER", "I-PER", "O", "B-LOC", "O"]}, "a:2")
MARKED = spans.to_sample({"text": "彭小军去Paris（x）", "spans": [[0, 3, "PER"], [4, 9, "LOC"]]}, "a:3")


@cache
def tokenizer_of(family: str) -> Any:
    return make_tokenizer(family)


def labelled(family: str = "qwen2.5", task="classify", input="text", labels=None) -> Labelled:
    return Labelled(Renderer(tokenizer_of(family)), task, labels or (CLASSES if task == "classify" else TAGS), input)


def up_to_labels(renderer: Labelled, sample: Sample) -> list[tuple[str, str]]:
    """What stands up to each label, and the label."""
    [document] = renderer.documents(sample)
    bounds = [0, *(position + 1 for position in document.fed.positions)]
    texts = [renderer.tokenizer.decode(document.fed.ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return list(zip(texts, [renderer.labels[target] for target in document.targets], strict=True))


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_bare_text_has_its_label_at_the_last_token(family):
    renderer = labelled(family)
    [document] = renderer.documents(ROW)
    fed = renderer.tokenizer("It was good.")["input_ids"]  # with the BOS of those that have one
    assert document.fed.ids == fed and (fed[0] == renderer.tokenizer.bos_token_id) == (family in ADDS_BOS)
    assert document.ids == [*fed, 1] and document.spans == ((len(fed) - 1, len(fed)),)
    assert prove([document], renderer).approximate == 0


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_chats_prompt_has_its_label_where_the_answer_would_begin(family):
    renderer = labelled(family, input="chat")
    [document] = renderer.documents(ROW)
    prompt = renderer.renderer.prompt_ids(ROW.messages[:1])
    assert document.ids == [*prompt, 1] and document.fed.positions == (len(prompt) - 1,)
    prove([document], renderer)


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("input", ["text", "chat"])
def test_each_word_has_its_label_at_its_last_token(family, input):
    renderer = labelled(family, "tag", input)
    words = [(text.split("\n")[-1].strip(), label) for text, label in up_to_labels(renderer, SENTENCE)]
    assert [label for _, label in words] == ["B-PER", "I-PER", "O", "B-LOC", "O"]
    assert words[0][0].endswith("Angela") and [word for word, _ in words[1:]] == ["Merkel", "in", "Paris", "."]
    marked = up_to_labels(renderer, MARKED)
    assert marked[0][0].endswith("彭") and [text for text, _ in marked[1:]] == ["小", "军", "去", "Paris", "（", "x", "）"]
    assert [label for _, label in marked] == ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "O", "O", "O"]
    prove([*renderer.documents(SENTENCE), *renderer.documents(MARKED)], renderer)


def test_the_text_is_found_in_its_prompt_and_not_in_what_stands_around_it():
    renderer = labelled("qwen2.5", "tag", "chat")
    row = {"tokens": ["assistant"], "tags": ["B-PER"], "prompt": "Name the user:"}
    [(before, label)] = up_to_labels(renderer, conll.to_sample(row, "a:1"))
    assert before.endswith("<|im_start|>user\nName the user:\nassistant") and label == "B-PER"


def test_blanks_that_a_template_trims_move_no_label():
    sample = spans.to_sample({"text": "  Paris \n", "spans": [[2, 7, "LOC"]]}, "a:1")
    for family in ("gemma-3", "qwen2.5"):  # one trims, one does not
        [(text, label)] = up_to_labels(labelled(family, "tag", "chat"), sample)
        assert text.endswith("Paris") and label == "B-LOC"


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("input", ["text", "chat"])
def test_special_tokens_in_a_text_stay_text(family, input):
    renderer = labelled(family, "tag", input)
    special = renderer.tokenizer.eos_token
    sample = conll.to_sample({"tokens": ["Angela", special, "Paris"], "tags": ["B-PER", "O", "B-LOC"]}, "a:1")
    [document] = renderer.documents(sample)
    first, last = document.fed.positions[0], document.fed.positions[-1]
    assert renderer.tokenizer.eos_token_id not in document.fed.ids[first : last + 1]
    assert renderer.notes[notes.SPECIAL_TEXT] == 1
    assert [text.strip() for text, _ in up_to_labels(renderer, sample)][1:] == [special, "Paris"]
    prove([document], renderer)


def test_a_template_that_changes_the_text_is_refused_for_tags():
    template = "{% for message in messages %}{{ message.content | replace('Merkel', 'M.') }}{% endfor %}"
    renderer = Labelled(Renderer(make_tokenizer("qwen2.5", template)), "tag", TAGS, "chat")
    with pytest.raises(RowError, match=r"changes the text that is tagged; take task\.input=text"):
        renderer.documents(SENTENCE)


def test_rows_of_other_shapes_are_classified_by_their_answer():
    chat = ({"role": "system", "content": "Judge."}, {"role": "user", "content": "Bad."}, {"role": "assistant", "content": " negative "})
    sample = Sample("a:1", chat)
    assert (text_of(sample), label_of(sample)) == ("Bad.", "negative")
    assert labelled().documents(sample)[0].targets == (0,)
    prompt = labelled(input="chat").documents(sample)[0].fed.said
    assert "Judge." in prompt and "negative" not in prompt


@pytest.mark.parametrize(
    ("sample", "task", "reason"),
    [
        (Sample("a:1", text="raw"), "classify", "raw text without a label or marks"),
        (Sample("a:1", text="raw"), "tag", "raw text without a label or marks"),
        (SENTENCE, "classify", r"it has no label of its own: take task\.name=tag"),
        (ROW, "tag", "no entities are marked in it"),
        (Sample("a:1", (*ROW.messages[:1], {"role": "assistant", "content": "so " * 40})), "classify", "of 119 characters, not a label"),
        (labels.to_sample({"text": "x", "label": "positve"}, "a:1"), "classify", "'positve' is none of the 2 .*did you mean 'positive'"),
        (labels.to_sample({"text": "x", "label": "7"}, "a:1"), "classify", r"\('negative', 'positive'\); mend it, or name every label"),
        (spans.to_sample({"text": "x", "spans": [[0, 1, "ORG"]]}, "a:1"), "tag", r"type 'ORG' is none of the 2 .*\('PER', 'LOC'\)"),
    ],
)
@pytest.mark.parametrize("input", ["text", "chat"])
def test_rows_that_a_head_cannot_learn_say_why(sample, task, reason, input):
    renderer = labelled(task=task, input=input)
    with pytest.raises(RowError, match=reason):
        renderer.documents(sample)
    [good, bad] = renderer.documents_of([ROW if task == "classify" else SENTENCE, sample])
    assert isinstance(bad, RowError) and not isinstance(good, RowError)


def test_a_bare_question_is_fed_as_rows_are():
    for task, row in (("classify", ROW), ("tag", MARKED)):
        for input in ("text", "chat"):
            renderer = labelled(task=task, input=input)
            assert renderer.feed(renderer.sample(row.source)).ids == renderer.documents(row)[0].fed.ids
    with pytest.raises(RowError, match="the text is empty"):
        labelled().feed(labelled().sample("  "))


def test_what_decides_the_tokens_decides_the_fingerprint():
    one = labelled()
    same = pickle.loads(pickle.dumps(one))  # as another process gets it
    assert same.fingerprint == one.fingerprint and same.documents(ROW) == one.documents(ROW) and same.labelled
    others: list[Any] = [labelled(input="chat"), labelled(labels=CLASSES[::-1]), labelled(task="tag"), labelled("smollm2"), one.renderer]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_date_counts_where_it_is_fed():
    assert labelled("llama-3.2", input="chat").prints_date and not labelled("llama-3.2").prints_date
    assert labelled("llama-3.2", input="chat").template and not labelled("llama-3.2").template


def test_a_part_of_a_sample_keeps_what_is_marked_in_it():
    part = part_of(SENTENCE, 7, 22)  # Merkel in Paris
    assert part.source == "Merkel in Paris" and part.messages == ({"role": "user", "content": "Merkel in Paris"},)
    assert part.entities == ((0, 6, "PER"), (10, 15, "LOC")) and part.words == ((0, 6), (7, 9), (10, 15))


def test_a_label_stands_once():
    with pytest.raises(UserError, match=r"task\.labels: 'a' stands there more than once"):
        labelled(labels=("a", "b", "a"))


def test_notes_count_rows():
    renderer = labelled(task="tag")
    renderer.documents(spans.to_sample({"text": "Parisian", "spans": [[0, 5, "LOC"]]}, "a:1"))
    assert renderer.notes == {notes.WIDENED: 1}
