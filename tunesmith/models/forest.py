"""Where the documents of a packed row stand, and what they share: made once a row, read by every layer's attention.

A row holds segments, stretches of tokens that stand once. Without sharing each document is one. With it the segments are a forest
in depth-first order: whatever goes on from a segment follows it without a gap, so that the queries that see a segment's keys are
one stretch of the row. In front of every root may stand keys and values that are no part of the row: a prefix, or the beginning
that another row has computed for it.

        row        │ s s s s │ a a a │ b b │ u u u │ c c │      parents  -1 0 0 -1 3
        a sees      ─────────  ──►
        b sees      ─────────           ──►
        c sees                               ───────  ──►

Shapes: T tokens of the row, K key/value heads, P positions in front, E head size.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

Front = tuple[Tensor, Tensor]  # keys and values in front of every root, [K, P, E] each


@dataclass(frozen=True, slots=True)
class Crossing:
    """The keys of one segment, and the stretch of the row whose queries see all of them."""

    keys: tuple[int, int]
    queries: tuple[int, int]
    depth: int


@dataclass(eq=False)
class Forest:
    """`starts` are S+1 offsets, the first 0, the last T; segments may be empty. `parents` is empty where nothing is shared.

    `carried` holds, outermost first, what rows in front of this one kept: keys and values of their only segment by attention module.
    Attention writes this row's own into `kept` where that is a dictionary.
    """

    starts: tuple[int, ...]
    parents: tuple[int, ...] = ()
    carried: tuple[Mapping[Any, Front], ...] = ()
    kept: dict[Any, Front] | None = None
    above: tuple[int, ...] = field(init=False)  # tokens of each segment's ancestors within the row
    crossings: tuple[Crossing, ...] = field(init=False)  # one for each segment that others continue, in the row's order
    _made: dict[Any, Any] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        assert self.starts[0] == 0, "the first segment begins the row"
        assert len(self.parents) in (0, len(self.starts) - 1), "every segment has a parent, or none is named"
        self.above, self.crossings = _shape(self.starts, self.parents)

    @property
    def tokens(self) -> int:
        return self.starts[-1]

    @property
    def segments(self) -> list[tuple[int, int]]:
        return list(pairwise(self.starts))

    @property
    def filled(self) -> list[int]:
        """The segments that hold tokens."""
        return [segment for segment, (begin, end) in enumerate(self.segments) if begin < end]

    def path(self, segment: int) -> list[int]:
        """The segments that stand before this one in its documents, outermost first, itself not among them."""
        found: list[int] = []
        while self.parents and (segment := self.parents[segment]) >= 0:
            found.append(segment)
        return found[::-1]

    def part(self, segments: Iterable[int]) -> "Forest":
        """The same without the other segments. Those chosen hold the parents of each of them."""
        chosen = list(segments)
        number = {segment: i for i, segment in enumerate(chosen)} | {-1: -1}
        starts = [0]
        for segment in chosen:
            starts.append(starts[-1] + self.starts[segment + 1] - self.starts[segment])
        return Forest(tuple(starts), tuple(number[self.parents[segment]] for segment in chosen) if self.parents else ())

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What a kernel derives from the offsets (indices on its device, sums of lengths): for the first layer made, then found."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _shape(starts: tuple[int, ...], parents: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[Crossing, ...]]:
    count = len(starts) - 1
    if not parents:
        return (0,) * count, ()
    above, depths, ends = [0] * count, [0] * count, list(starts[1:])
    previous: list[int] = []  # the path down to the segment before
    for segment, parent in enumerate(parents):
        if parent >= 0:
            assert parent in previous, f"segment {segment} does not follow what its parent {parent} begins"
            above[segment] = above[parent] + starts[parent + 1] - starts[parent]
            depths[segment] = depths[parent] + 1
        previous = [*previous[: depths[segment]], segment]
    for segment in range(count - 1, -1, -1):
        if (parent := parents[segment]) >= 0:
            ends[parent] = max(ends[parent], ends[segment])
    crossings = [
        Crossing((starts[s], starts[s + 1]), (starts[s + 1], ends[s]), depths[s])
        for s in range(count)
        if starts[s] < starts[s + 1] < ends[s]
    ]
    return tuple(above), tuple(crossings)


def forest_of(lengths: Iterable[int], parents: tuple[int, ...] = ()) -> Forest:
    """The forest of a row whose segments are so long."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return Forest(tuple(starts), tuple(parents))


def positions(forest: Forest, first: int = 0) -> Tensor:
    """[T] int64: roots begin at `first`, others go on from their parent's last position."""
    begins_S = torch.tensor([first + above - start for above, start in zip(forest.above, forest.starts, strict=False)])
    lengths_S = torch.tensor([end - begin for begin, end in forest.segments])
    return torch.arange(forest.tokens) + begins_S.repeat_interleave(lengths_S)


def row_arguments(
    lengths: tuple[int, ...],
    device: torch.device,
    first: int = 0,
    parents: tuple[int, ...] = (),
    carried: tuple[Mapping[Any, Front], ...] = (),
    kept: dict[Any, Front] | None = None,
) -> dict[str, Any]:
    """What a class is given beside the ids of a packed row: positions that restart (at `first`), where segments begin, and the forest."""
    forest = forest_of(lengths, parents)
    forest.carried, forest.kept = carried, kept
    starts = torch.tensor(forest.starts, dtype=torch.int32).to(device)
    longest = max(lengths)
    return {
        "position_ids": positions(forest, first)[None].to(device),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
        "forest": forest,
    }
