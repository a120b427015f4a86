"""A label for each word of a text, which together mark its entities: O, B-TYPE where one begins, I-TYPE where it goes on.

    Angela Merkel visited Paris
    B-PER  I-PER  O       B-LOC     each from the hidden state of the word's last token

A causal model has then read what stands to the left of a word and nothing of what follows it.
"""

from collections.abc import Iterable, Sequence

from tunesmith.data.look import classes as look
from tunesmith.data.look.classes import Found
from tunesmith.data.rendering import bio
from tunesmith.data.rendering.bio import Tagged
from tunesmith.data.rendering.labelled import UNMARKED, Fed, Input, Labelled
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample

HEAD = True
METRICS: tuple[str, ...] = ("entity_f1",)


def misfit(sample: Sample) -> str:
    """Why a row cannot be learned so, or ""."""
    return UNMARKED if sample.entities is None else ""


def labels(samples: Iterable[Sample]) -> Found:
    """The types of the rows' entities. Raises UserError where none is marked."""
    return look.types_of(samples)


def classes(labels: Sequence[str]) -> list[str]:
    """What the head's rows mean: O, then B- and I- of each type."""
    return bio.labels_for(labels)


def labels_of(classes: Sequence[str]) -> list[str]:
    """The types whose `classes` these are."""
    return [name.removeprefix("B-") for name in classes if name.startswith("B-")]


def render(renderer: Renderer, labels: Sequence[str], input: Input = "text") -> Labelled:
    """Texts, each with a label at the last token of every word."""
    return Labelled(renderer, "tag", classes(labels), input)


def decode(classes: Sequence[str], fed: Fed, predicted: Sequence[int]) -> Tagged:
    """The words with their labels and the entities, from the rows of the head that were predicted, one a word."""
    return bio.tagged(fed.source, fed.words, [classes[number] for number in predicted])
