"""Which labels are taken for which: rows are what was expected, columns what was predicted."""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.evaluate.labels import label

SMALL = 12  # labels whose table is still read at a glance


@dataclass(frozen=True, slots=True)
class Confusion:
    """L labels. An answer that is none of them is counted in `other`."""

    labels: tuple[str, ...]
    counts_LL: list[list[int]]
    other_L: list[int]

    @property
    def is_small(self) -> bool:
        return len(self.labels) <= SMALL


def confusion(predictions: Sequence[str], references: Sequence[str], labels: Sequence[str] = ()) -> Confusion:
    """Counts of (expected, predicted). Without `labels`, written answers: read as in `metrics/accuracy.py`, in the references' order."""
    if not labels:
        names = {label(text): text.strip() for text in reversed(references)}  # each as it is first written
        order = sorted(names)
        predictions, references, labels = [label(text) for text in predictions], [label(text) for text in references], order
    else:
        names = dict(zip(labels, labels, strict=True))
    place = {name: at for at, name in enumerate(labels)}
    counts_LL, other_L = [[0] * len(labels) for _ in labels], [0] * len(labels)
    for ours, theirs in zip(predictions, references, strict=True):
        if ours in place:
            counts_LL[place[theirs]][place[ours]] += 1
        else:
            other_L[place[theirs]] += 1
    return Confusion(tuple(names[name] for name in labels), counts_LL, other_L)
