"""A short piece of a row that still has everything of it that matters to how it is computed: several documents, what they share, rows
behind it, placeholders, and learned positions. What it says makes no sense any more, which no product or norm minds."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from tunesmith.data.corpus.batches import Row

TOKENS = 64  # of a piece, about: tenths of a second's work for a small model on a CPU
SEGMENTS = 4
LEARNED = 4  # positions of a segment: with a large vocabulary the head is a third of a small model's work
BEHIND = 2  # rows


def piece(row: Row, vocabulary: int, tokens: int = TOKENS) -> Row:
    """The first segments of the row, of each as many tokens as come to about `tokens` in all, up to its last learned one.

    Ids from `vocabulary` on are placeholders, of which none may be missing: they are kept beside.
    """
    behind = tuple(piece(other, vocabulary, tokens // (BEHIND + 1)) for other in row.behind[:BEHIND])
    starts = torch.tensor([0, *row.lengths]).cumsum(0).tolist()
    count = max(SEGMENTS, 1 + _first_learned(row, starts)) if not behind else len(row.lengths)
    lengths, kept_T = row.lengths[:count], torch.zeros(len(row.ids_T), dtype=torch.bool)
    each = max(2, (tokens // (BEHIND + 1) if behind else tokens) // len(lengths))
    ranges = list(pairwise(starts[: len(lengths) + 1]))
    for begin, end in ranges:
        last = _last_learned(row.hidden_N, begin, end)
        kept_T[max(begin, last + 1 - each) : last + 1] = True
        kept_T[begin:end] |= row.ids_T[begin:end] >= vocabulary
    place_T, learned_N = kept_T.cumsum(0) - 1, kept_T[row.hidden_N] & _last_few(row.hidden_N, ranges)
    return replace(
        row,
        ids_T=row.ids_T[kept_T],
        lengths=tuple(int(kept_T[begin:end].sum()) for begin, end in ranges),
        hidden_N=place_T[row.hidden_N[learned_N]],
        targets_N=row.targets_N[learned_N],
        computed_tokens=int(kept_T.sum()),
        parents=row.parents[:count],
        behind=behind,
    )


def _first_learned(row: Row, starts: list[int]) -> int:
    """The number of the first segment in which something is learned, or 0."""
    if len(row.hidden_N) == 0:
        return 0
    first = int(row.hidden_N.min())
    return next(i for i in range(len(row.lengths)) if first < starts[i + 1])


def _last_learned(hidden_N: Tensor, begin: int, end: int) -> int:
    """The last learned position from `begin` on before `end`, or the last one of all."""
    inside_N = hidden_N[(hidden_N >= begin) & (hidden_N < end)]
    return int(inside_N.max()) if len(inside_N) else end - 1


def _last_few(hidden_N: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    """Of each segment's learned positions the last `LEARNED`; a position that several documents learn is one, and all of it stays."""
    few_N = torch.zeros(len(hidden_N), dtype=torch.bool)
    for begin, end in ranges:
        inside_N = (hidden_N >= begin) & (hidden_N < end)
        last = hidden_N[inside_N].unique()[-LEARNED:]
        few_N |= torch.isin(hidden_N, last)
    return few_N
