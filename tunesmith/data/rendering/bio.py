"""Entities of a text as one label a word, and back: O, B-TYPE at an entity's first word, I-TYPE at its others (BIO, or IOB2)."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tunesmith.data.formats.conll import by_type, decode
from tunesmith.data.rendering import notes
from tunesmith.data.rendering.words import Span

OUTSIDE = "O"
Entity = tuple[int, int, str]  # characters, the end not included, and the type


@dataclass(frozen=True, slots=True)
class Tagged:
    """The words of a text with their labels, and the entities that those mean."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    entities: tuple[Entity, ...]

    def json(self, source: str) -> str:
        """{type: [text, ...]}, as rows of marked spans are learned where the answer is written."""
        return by_type((kind, source[start:end]) for start, end, kind in self.entities)


def labels_for(types: Iterable[str]) -> list[str]:
    """O, then B- and I- of each type."""
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def types_in(labels: Iterable[str]) -> list[str]:
    """The types of such labels, each once."""
    return list(dict.fromkeys(label[2:] for label in labels if label != OUTSIDE))


def tags_of(words: Sequence[Span], entities: Iterable[Entity]) -> tuple[list[str], list[str]]:
    """Each word's label, and what could not be said so. An entity that ends inside a word is taken to the word's end."""
    tags, told = [OUTSIDE] * len(words), dict[str, None]()
    starts, ends = [start for start, _ in words], [end for _, end in words]
    done = 0  # characters up to which entities have been written
    for start, end, kind in sorted(entities, key=lambda entity: (entity[0], -entity[1], entity[2])):
        first, last = bisect_right(ends, start), bisect_left(starts, end)  # of the words that it touches; the last not included
        if start < done:
            told[notes.OVERLAPPING] = None
        elif first >= last or tags[first] != OUTSIDE:
            told[notes.UNTAGGED] = None
        else:
            tags[first:last] = [f"B-{kind}", *[f"I-{kind}"] * (last - first - 1)]
            done = end
            if (starts[first], ends[last - 1]) != (start, end):
                told[notes.WIDENED] = None
    return tags, list(told)


def tagged(source: str, words: Sequence[Span], tags: Sequence[str]) -> Tagged:
    """What labels mean; an I- that goes on with nothing begins an entity."""
    found, _ = decode(list(tags))
    entities = tuple((words[entity.start][0], words[entity.end - 1][1], entity.kind) for entity in found)
    return Tagged(tuple(source[start:end] for start, end in words), tuple(tags), entities)
