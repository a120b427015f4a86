"""Documents become optimizer steps, and each step becomes packed rows. A pure function of seed, epoch and step number: a
resumed run needs no saved position, and the documents of a step do not depend on how they are packed.

Shapes: T tokens of a row, N learned tokens of a row, D documents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith.data.corpus import packing
from tunesmith.data.corpus.documents import Documents
from tunesmith.data.corpus.packing import Piece
from tunesmith.data.corpus.sharing import Branch, branch, ends_in, forest


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
    share: bool = False  # what documents of a row begin with in common is computed once
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
        return make_rows(self.documents, self.members(step), self.row_tokens, self.pack, self.virtual_ids, self.share)

    def step_documents(self, step: int) -> Documents:
        """The documents that the numbers in a step's rows mean."""
        return self.documents

    def alone(self) -> "Plan":
        """The same steps, a row for each document."""
        return replace(self, pack=False)

    def behind(self, virtual_ids: range) -> "Plan":
        """The same steps, each document behind these placeholders."""
        return replace(self, virtual_ids=virtual_ids)

    def shared(self, share: bool) -> "Plan":
        """The same steps, with what documents begin with in common computed once, or each time."""
        return replace(self, share=share)

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


def flat(rows: Sequence[Row]) -> Iterator[Row]:
    """Rows and those behind them, each before those that go on from it."""
    for row in rows:
        yield row
        yield from flat(row.behind)


def make_rows(
    documents: Documents,
    members: Sequence[int] | np.ndarray,
    row_tokens: int,
    pack: bool,
    virtual_ids: range = range(0),
    share: bool = False,
) -> list[Row]:
    """Some documents as packed rows of at most `row_tokens` computed tokens: best fit, longest first; without packing a row for
    each document. With `share`, which needs packing, what they begin with in common is computed once for a row, or for a step."""
    chosen_D = np.asarray(members, np.int64)
    if share and pack:
        begin_D, end_D = documents.begin_D[chosen_D], documents.begin_D[chosen_D] + documents.lengths_D[chosen_D]
        sequences = [documents.ids_N[begin:end] for begin, end in zip(begin_D.tolist(), end_D.tolist(), strict=True)]
        roots = forest(sequences, len(virtual_ids))
    else:
        roots = _unshared(documents, chosen_D, virtual_ids)
    pieces = packing.pack(roots, row_tokens) if pack else [Piece((root,)) for root in roots]
    return [_row(documents, chosen_D, piece, virtual_ids) for piece in pieces]


def make_row(documents: Documents, members: Sequence[int], virtual_ids: range = range(0)) -> Row:
    """A row of whole documents, each behind the placeholders `virtual_ids`."""
    chosen_D = np.asarray(members, np.int64)
    return _row(documents, chosen_D, Piece(tuple(_unshared(documents, chosen_D, virtual_ids))), virtual_ids)


def _unshared(documents: Documents, chosen_D: np.ndarray, virtual_ids: range) -> list[Branch]:
    return [branch(0, length + len(virtual_ids), [i]) for i, length in enumerate(documents.lengths_D[chosen_D].tolist())]


def _row(documents: Documents, chosen_D: np.ndarray, piece: Piece, virtual_ids: range) -> Row:
    """The row of a piece, whose branches count the documents as `chosen_D` does, and the rows behind it."""
    front_V = np.asarray(virtual_ids, np.int64)
    ids, hidden, targets = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    lengths, parents, ending, at = list[int](), list[int](), list[int](), 0
    todo = [(root, -1) for root in reversed(piece.roots)]
    while todo:
        each, parent = todo.pop()
        for i in ends_in(each):
            hidden_L, targets_L = _learned(documents, int(chosen_D[i]), len(front_V))
            here = slice(*np.searchsorted(hidden_L, (each.begin, each.end)).tolist())
            hidden.append(hidden_L[here] + (at - each.begin))
            targets.append(targets_L[here])
        todo += [(further, len(lengths)) for further in reversed(() if piece.behind else each.branches)]
        ids.append(_ids(documents, int(chosen_D[each.first]), front_V, each))
        lengths.append(each.length)
        parents.append(parent)
        ending += each.documents
        at += each.length
    members_D = chosen_D[np.array(ending, np.int64)]
    hidden_N, targets_N = np.concatenate(hidden), np.concatenate(targets)
    if any(parent >= 0 for parent in parents) or piece.behind:
        order_N = np.argsort(hidden_N, kind="stable")  # tokens that several documents learn behind one position side by side
        hidden_N, targets_N = hidden_N[order_N], targets_N[order_N]
    return Row(
        ids_T=torch.from_numpy(np.concatenate(ids)),
        lengths=tuple(lengths),
        documents=tuple(members_D.tolist()),
        hidden_N=torch.from_numpy(hidden_N),
        targets_N=torch.from_numpy(targets_N),
        tokens=int(documents.lengths_D[members_D].sum()),
        computed_tokens=at,
        parents=tuple(parents) if any(parent >= 0 for parent in parents) else (),
        behind=tuple(_row(documents, chosen_D, other, virtual_ids) for other in piece.behind),
    )


def _ids(documents: Documents, member: int, front_V: np.ndarray, each: Branch) -> np.ndarray:
    """The ids of a branch, read from a document that begins with it."""
    begin = int(documents.begin_D[member]) - len(front_V)
    own_L = documents.ids_N[begin + max(each.begin, len(front_V)) : begin + each.end].astype(np.int64)
    return np.concatenate([front_V[each.begin : each.end], own_L])


def _learned(documents: Documents, member: int, in_front: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a document's next token, or a label, is learned, counted with what stands in front of it, and those tokens or labels."""
    begin, end = int(documents.begin_D[member]), int(documents.end_D[member])
    learned_L = np.flatnonzero(documents.learned_N[begin:end])
    if documents.labelled:
        return in_front + learned_L, documents.ids_N[end - len(learned_L) : end].astype(np.int64)
    learned_L = learned_L[learned_L + in_front > 0]  # nothing stands before a document's first token to predict it from
    return in_front + learned_L - 1, documents.ids_N[begin + learned_L].astype(np.int64)
