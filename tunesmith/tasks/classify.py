"""One label for a text: a linear head on the hidden state of the last token, at which a causal model has read all of it.

    the room was clean and quiet
    h1  h2   h3  h4    h5  h6    -> score [labels, channels] -> positive

With task.head=words there is no head of its own: the label is learned as an answer, as task `generate` does it, and what is
predicted is the label whose words are likeliest.
"""

from collections.abc import Iterable, Sequence

from tunesmith.data.look import classes as look
from tunesmith.data.look.classes import Found
from tunesmith.data.rendering.labelled import Fed, Input, Labelled, label_of
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import RowError, Sample

HEAD = True
METRICS: tuple[str, ...] = ("accuracy", "macro_f1", "confusion")


def misfit(sample: Sample) -> str:
    """Why a row cannot be learned so, or ""."""
    try:
        label_of(sample)
    except RowError as error:
        return str(error)
    return ""


def labels(samples: Iterable[Sample]) -> Found:
    """The labels of the rows. Raises UserError where there is nothing to tell apart."""
    return look.labels_of(samples)


def classes(labels: Sequence[str]) -> list[str]:
    """What the head's rows mean."""
    return list(labels)


def labels_of(classes: Sequence[str]) -> list[str]:
    """The labels whose `classes` these are."""
    return list(classes)


def render(renderer: Renderer, labels: Sequence[str], input: Input = "text") -> Labelled:
    """Texts, each with its label at the last token."""
    return Labelled(renderer, "classify", classes(labels), input)


def decode(classes: Sequence[str], fed: Fed, predicted: Sequence[int]) -> str:
    """The label of a text, from the one row of the head that was predicted."""
    [number] = predicted
    return classes[number]
