"""Documents become optimizer steps, and each step becomes packed rows. A pure function of seed, epoch and step number: a
resumed run needs no saved position, and the documents of a step do not depend on how they are packed.

Shapes: T tokens of a row, N learned tokens of a row, D documents.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.corpus.documents import Documents


@dataclass(frozen=True, slots=True)
class Row:
    """Some whole documents, one behind the other; what several of them begin with may stand there once.

    A segment is a stretch of tokens that stands once. Without sharing each document is a segment. With it the segments are a
    forest in depth-first order: a segment's descendants follow it without a gap, and a document is the path from a root to where
    it ends. Positions go on from the parent's last one.

        system a a a b b b user c c    lengths 1 3 3 1 2, parents -1 0 0 -1 3

    Where one beginning is shared by more documents than a row holds, it is a row of one segment, and the rows `behind` it go
    on from its last token: their roots continue it.
    """

    ids_T: Tensor  # int64; ids beyond the vocabulary are placeholders of virtual tokens
    lengths: tuple[int, ...]  # tokens of each segment, virtual ones included
    documents: tuple[int, ...]  # the numbers in `Documents` of those that end here
    hidden_N: Tensor  # int64: the positions whose next token, or whose label, is learned; once for each document that learns it
    targets_N: Tensor  # int64: those next tokens or labels
    tokens: int  # real tokens of the documents that end here, each as if it stood alone
    computed_tokens: int  # what is computed for this row: virtual tokens too, what is shared once
    parents: tuple[int, ...] = ()  # the segment that each continues, -1 for a root; empty: all are roots
    behind: tuple["Row", ...] = ()  # rows that continue this one's only segment


@dataclass(frozen=True)
class Plan:
    """Which documents each optimizer step sees. Step 0 is the first."""

    documents: Documents
    tokens_per_step: int
    row_tokens: int
    seed: int
    pack: bool = True
    virtual_ids: range = range(0)  # placeholders in front of each document
    lengths_D: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths_D", self.documents.lengths_D)

    @property
    def steps_per_epoch(self) -> int:
        total = int(self.lengths_D.sum())
        return max(1, min(len(self.lengths_D), round(total / self.tokens_per_step)))

    def steps_for(self, epochs: float) -> int:
        return max(1, round(epochs * self.steps_per_epoch))

    def tokens_in(self, steps: int) -> int:
        """Real tokens of the first `steps` steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        partial = sum(int(self.lengths_D[self.members(epochs * self.steps_per_epoch + i)].sum()) for i in range(rest))
        return epochs * int(self.lengths_D.sum()) + partial

    def members(self, step: int) -> np.ndarray:
        """The numbers of a step's documents."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order_D, bounds = _epoch(self, epoch)
        return order_D[bounds[position] : bounds[position + 1]]

    def rows(self, step: int) -> list[Row]:
        """The packed rows of a step."""
        return make_rows(self.documents, self.members(step), self.row_tokens, self.pack, self.virtual_ids)

    def step_documents(self, step: int) -> Documents:
        """The documents that the numbers in a step's rows mean."""
        return self.documents

    def alone(self) -> "Plan":
        """The same steps, a row for each document."""
        return replace(self, pack=False)

    def behind(self, virtual_ids: range) -> "Plan":
        """The same steps, each document behind these placeholders."""
        return replace(self, virtual_ids=virtual_ids)

    def report(self, ended_after: int | None = None) -> dict[str, Any] | None:
        """What has become known of the data since the run began: nothing."""
        return None

    def close(self) -> None:
        """Nothing is at work beside the run."""


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def _epoch(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's order, and where its steps begin in it: about as many tokens each, at least one document each."""
    order_D = _shuffle(plan.seed, epoch, len(plan.lengths_D))
    ends_D = plan.lengths_D[order_D].cumsum()
    steps, count = plan.steps_per_epoch, len(order_D)
    wanted = np.searchsorted(ends_D, np.arange(1, steps) * ends_D[-1] / steps) + 1
    numbers = np.arange(1, steps)
    inner = np.maximum.accumulate(np.maximum(wanted - numbers, 0)) + numbers  # strictly rising
    inner = np.minimum(inner, count - steps + numbers)
    return order_D, np.concatenate([[0], inner, [count]])


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each length into the fullest row that still holds it. A length beyond the capacity stands alone."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted: the first that is large enough is the fullest that still holds it
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], 0))
        if at < len(room):
            left, row = room.pop(at)
            rows[row].append(i)
        else:
            left, row = capacity, len(rows)
            rows.append([i])
        insort(room, (left - lengths[i], row))
    return rows


def make_rows(
    documents: Documents, members: Sequence[int] | np.ndarray, row_tokens: int, pack: bool, virtual_ids: range = range(0)
) -> list[Row]:
    """Some documents as packed rows: best fit, longest documents first; without packing a row for each document."""
    chosen = np.asarray(members, np.int64)
    room = documents.lengths_D[chosen] + len(virtual_ids)
    groups = best_fit(room.tolist(), row_tokens) if pack else [[i] for i in range(len(chosen))]
    return [make_row(documents, [int(chosen[i]) for i in group], virtual_ids) for group in groups]


def make_row(documents: Documents, members: Sequence[int], virtual_ids: range = range(0)) -> Row:
    """A row of whole documents, each behind the placeholders `virtual_ids`."""
    ids, hidden, targets, lengths, at = [], [], [], [], 0
    front_V = np.asarray(virtual_ids, dtype=np.int64)
    for member in members:
        begin, end = int(documents.begin_D[member]), int(documents.end_D[member])
        ids_L = documents.ids_N[begin:end].astype(np.int64)
        learned = np.flatnonzero(documents.learned_N[begin:end])
        if documents.labelled:
            ids_L, labels = ids_L[: len(ids_L) - len(learned)], ids_L[len(ids_L) - len(learned) :]
            hidden.append(at + len(front_V) + learned)
            targets.append(labels)
        else:
            learned = learned[learned + len(front_V) > 0]  # nothing stands before a document's first token to predict it from
            hidden.append(at + len(front_V) + learned - 1)
            targets.append(ids_L[learned])
        ids += [front_V, ids_L]
        lengths.append(len(front_V) + len(ids_L))
        at += lengths[-1]
    real = at - len(front_V) * len(members)
    parts = [torch.from_numpy(np.concatenate(part)) for part in (ids, hidden, targets)]
    return Row(parts[0], tuple(lengths), tuple(members), parts[1], parts[2], real, at)
