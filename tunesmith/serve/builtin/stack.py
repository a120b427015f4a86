"""Low-rank updates of many adapters beside one frozen layer, in two products whatever their number.

    y = x·Wᵀ + (own ∘ (x·downᵀ))·up          down [K, I], up [K, O]: the adapters' factors one below the other
                                             own [T, K]: 1 in the columns of a token's own adapter, 0 elsewhere

DoRA lays a factor on base and update: y += y ∘ beyond, a row of `beyond` [T, O] for each token, zeros for other methods'.

The stack of a layer has room for K rows. An adapter that is asked for gets rows of its own in every layer's stack and keeps them until
others need them, the one asked for longest ago first; so a step only says which columns are whose. The rows in use are read as one
slice. A long stretch of one adapter's tokens (a prompt's) goes by that adapter's own two products: there the other columns' work
would be more than what a product costs to begin.

Layers that read one input (q k v, gate up) have their `down` in one matrix: one product for all of them.

Shapes: T tokens of the row, S those that go by the stack, K rank, G layers that read one input, I and O inputs and outputs of a layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.nf4 import is_nf4, shape_of, weight_of
from tunesmith.models.products import forward_of

LONG = 32  # tokens of one adapter that go by its own products
FEWEST_ROWS = 64  # of a stack: eight adapters of rank 8
MOST_ROWS = 512  # adapters that find no room go by their own products, one after the other


@dataclass(frozen=True, slots=True)
class Factors:
    """What one adapter has beside the layers of a group, in the dtype that they compute in."""

    numbers: tuple[int, ...]  # of the layers in the group
    down_KGI: Tensor  # rows behind a layer's own rank are zeros
    ups_KO: Mapping[int, Tensor]  # by the layer's number, with the scale in it
    beyonds_O: Mapping[int, Tensor]  # of DoRA: the factor on base and update, less 1

    @property
    def tensors(self) -> list[Tensor]:
        return [self.down_KGI, *self.ups_KO.values(), *self.beyonds_O.values()]


@torch.no_grad()
def factors_of(given: Mapping[int, tuple[Tensor, Tensor, Tensor | None]], dtype: torch.dtype) -> Factors:
    """Of (down [K, I], up [O, K], beyond [O] or None) by the layer's number: copies, so that a module's own tensors can go."""
    numbers = tuple(sorted(given))
    rank = max(given[number][0].shape[0] for number in numbers)
    first = given[numbers[0]][0]
    down_KGI = torch.zeros(rank, len(numbers), first.shape[1], dtype=dtype, device=first.device)
    ups: dict[int, Tensor] = {}
    for place, number in enumerate(numbers):
        down_KI, up_OK, _ = given[number]
        down_KGI[: down_KI.shape[0], place] = down_KI
        ups[number] = torch.empty(up_OK.T.shape, dtype=dtype, device=first.device).copy_(up_OK.T)
    beyonds = {number: beyond.detach().to(dtype, copy=True) for number, (_, _, beyond) in given.items() if beyond is not None}
    return Factors(numbers, down_KGI, ups, beyonds)


@dataclass(eq=False)
class Share:
    """Which tokens of a row go by which low-rank updates."""

    tokens: int
    own: tuple[tuple[int, int, str], ...]  # stretches (start, end, adapter) that go by the adapter's own products
    stacked: tuple[tuple[int, int, str], ...]  # those that go by the stack
    rows: tuple[int, int] = (0, 0)  # of the stack: those of all adapters in `stacked`
    index_S: Tensor | None = None  # tokens that go by the stack; None: all of the row
    foreign_KS: Tensor | None = None  # True where a column is another adapter's
    works: dict[int, "_Work"] = field(default_factory=dict)  # by group, made when first asked for


@dataclass(frozen=True, slots=True)
class _Work:
    """What of a share concerns one group of layers."""

    stacked: frozenset[int]  # numbers of the layers at which one of the stacked adapters has something
    own: tuple[tuple[int, int, Factors], ...]
    beyonds_SO: Mapping[int, Tensor]  # by layer: DoRA's factors less 1 of the tokens that go by the stack
    scaled: frozenset[int]  # the layers at which a DoRA has something
    last: int  # of the layers that have something

    @property
    def idle(self) -> bool:
        return not (self.stacked or self.own)


@dataclass(slots=True)
class _Narrow:
    """x·downᵀ of a group's layers, kept until the last of them has asked."""

    x: Tensor  # held, so that no other tensor can be taken for it
    version: int
    share: Share
    stacked_KGS: Tensor | None
    own_KGT: list[Tensor]


class Group:
    """Linear layers that read one input, and what adapters have beside them."""

    def __init__(self, at: int, layers: Sequence[Any]):
        self.at, self.layers = at, layers
        self.factors: dict[str, Factors] = {}
        self.numbers: tuple[int, ...] = ()  # of the layers that have a stack
        self.down: Tensor | None = None  # [K·G, I]: an adapter's rows of all layers lie together
        self.ups: dict[int, Tensor] = {}  # [K, O] by layer
        self._narrow: _Narrow | None = None

    def work(self, share: Share) -> _Work:
        """What this share means here; made once."""
        if (work := share.works.get(self.at)) is None:
            work = share.works[self.at] = self._work(share)
        return work

    def output(self, number: int, x: Tensor, share: Share) -> Tensor:
        """The layer's own product and every token's update: [..., I] to [..., O]."""
        layer, work = self.layers[number], self.work(share)
        x_TI = x.reshape(-1, x.shape[-1])
        if x_TI.shape[0] != share.tokens:
            raise ValueError(f"a layer is called with {x_TI.shape[0]} tokens of a row of {share.tokens}: this model's rows cannot be mixed")
        # a factor is laid on what stands before the bias, and taking a large bias off again would leave little
        bias_O: Any = layer.bias if number in work.scaled else None
        y_TO = forward_of(layer, x_TI) if bias_O is None else x_TI @ weight_of(layer).T
        narrow = self._narrowed(x, x_TI, share, work)
        if number in work.stacked:
            self._add_stacked(y_TO, number, narrow, share, work)
        for (start, end, factors), p_KGT in zip(work.own, narrow.own_KGT, strict=True):
            if number in factors.ups_KO:
                part_TO = y_TO[start:end].addmm_(p_KGT[:, factors.numbers.index(number)].T, factors.ups_KO[number])
                if number in factors.beyonds_O:
                    part_TO.addcmul_(part_TO, factors.beyonds_O[number])
        if number >= work.last:
            self._narrow = None
        if bias_O is not None:
            y_TO.add_(bias_O)
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1])

    def _add_stacked(self, y_TO: Tensor, number: int, narrow: _Narrow, share: Share, work: _Work) -> None:
        assert narrow.stacked_KGS is not None
        p_SK, up_KO = narrow.stacked_KGS[:, self.numbers.index(number)].T, self.ups[number][slice(*share.rows)]
        beyond_SO = work.beyonds_SO.get(number)
        if share.index_S is None:
            y_TO.addmm_(p_SK, up_KO)
            if beyond_SO is not None:
                y_TO.addcmul_(y_TO, beyond_SO)
            return
        added_SO = p_SK @ up_KO
        if beyond_SO is not None:
            added_SO.addcmul_(y_TO[share.index_S].add_(added_SO), beyond_SO)
        y_TO.index_add_(0, share.index_S, added_SO)

    def _narrowed(self, x: Tensor, x_TI: Tensor, share: Share, work: _Work) -> _Narrow:
        version = -1 if x.is_inference() else x._version  # what inference mode makes tells no version
        kept = self._narrow
        if kept is not None and kept.x is x and kept.version == version and kept.share is share:
            return kept
        stacked_KGS = None
        if work.stacked:
            assert self.down is not None
            layers, (first, end) = len(self.numbers), share.rows
            x_SI = x_TI if share.index_S is None else x_TI[share.index_S]
            stacked_KGS = torch.mm(self.down[first * layers : end * layers], x_SI.T).view(end - first, layers, -1)
            if share.foreign_KS is not None:
                stacked_KGS.masked_fill_(share.foreign_KS[:, None], 0)  # never a product: 0 · inf is not 0
        own = [torch.mm(f.down_KGI.flatten(0, 1), x_TI[start:end].T).view(*f.down_KGI.shape[:2], -1) for start, end, f in work.own]
        self._narrow = _Narrow(x, version, share, stacked_KGS, own)
        return self._narrow

    def _work(self, share: Share) -> _Work:
        here = {name: self.factors[name] for _, _, name in (*share.stacked, *share.own) if name in self.factors}
        stacked = frozenset(n for _, _, name in share.stacked if name in here for n in here[name].numbers)
        own = tuple((start, end, here[name]) for start, end, name in share.own if name in here)
        scaled = frozenset(number for factors in here.values() for number in factors.beyonds_O)
        beyonds_SO = {number: _beyond(share, number, here) for number in sorted(scaled & stacked)}
        last = max((number for factors in here.values() for number in factors.numbers), default=0)
        return _Work(stacked, own, beyonds_SO, scaled, last)

    def make_room(self, rows: int) -> None:
        """An empty stack."""
        numbers = sorted({number for factors in self.factors.values() for number in factors.numbers})
        self.numbers, self.down, self.ups, self._narrow = tuple(numbers), None, {}, None
        if not numbers or not rows:
            return
        like: dict[str, Any] = {"dtype": dtype_of(self.layers[0]), "device": self.layers[0].weight.device}
        # zeros, never what was in memory: rows between two adapters are computed with, and not used
        self.down = torch.zeros(rows * len(numbers), shape_of(self.layers[0])[0], **like)
        self.ups = {number: torch.zeros(rows, shape_of(self.layers[number])[1], **like) for number in numbers}

    def write(self, name: str, first: int, rank: int) -> None:
        """Put an adapter's factors into rows of the stack."""
        if self.down is None:
            return
        factors = self.factors.get(name)
        rows_KGI = self.down.view(-1, len(self.numbers), self.down.shape[1])[first : first + rank]
        if factors is None:
            rows_KGI.zero_()
            return
        own = factors.down_KGI.shape[0]
        if own < rank or factors.numbers != self.numbers:
            rows_KGI.zero_()
        if factors.numbers == self.numbers:
            rows_KGI[:own].copy_(factors.down_KGI)
        else:
            for place, number in enumerate(factors.numbers):
                rows_KGI[:own, self.numbers.index(number)] = factors.down_KGI[:, place]
        for number, up_KO in factors.ups_KO.items():
            self.ups[number][first : first + own].copy_(up_KO)

    @property
    def stack_tensors(self) -> list[Tensor]:
        return [] if self.down is None else [self.down, *self.ups.values()]


class Stacks:
    """The stacks of all layers: an adapter has the same rows in each of them."""

    def __init__(self, groups: Sequence[Group], most_rows: int = MOST_ROWS):
        self.groups, self.most_rows = groups, most_rows
        self.rows = 0  # that every stack has room for
        self.ranks: dict[str, int] = {}
        self.placed: dict[str, int] = {}  # first row by adapter, the one asked for longest ago first
        self.version = 0  # rises when rows change hands

    def add(self, name: str, factors: Mapping[int, Factors]) -> None:
        """Know an adapter by its factors by group."""
        if not factors:
            return
        self.ranks[name] = max(each.down_KGI.shape[0] for each in factors.values())
        for at, each in factors.items():
            group = self.groups[at]
            group.factors[name] = each
            if group.down is not None and not set(each.numbers) <= set(group.numbers):
                self._empty(0)  # a layer without a stack until now
        if self.rows and any(self.groups[at].down is None for at in factors):
            self._empty(0)

    def remove(self, name: str) -> None:
        """Forget it; its rows are free."""
        self.placed.pop(name, None)
        if self.ranks.pop(name, None) is not None:
            for group in self.groups:
                group.factors.pop(name, None)
        self.version += 1
        if not self.ranks:
            self._empty(0)

    def share(self, spans: Sequence[tuple[int, int, str]], device: Any) -> Share:
        """How the tokens of a row are computed; those of the stack get their rows."""
        named = [span for span in spans if span[2] in self.ranks]
        short = [span for span in named if span[1] - span[0] < LONG]
        wanted: dict[str, int] = {}
        for _, _, name in short:
            if name not in wanted and sum(wanted.values()) + self.ranks[name] <= self.most_rows:
                wanted[name] = self.ranks[name]
        if len(wanted) < 2:
            wanted = {}  # one alone needs no columns of its own
        stacked = tuple(span for span in short if span[2] in wanted)
        own = tuple(span for span in named if span not in stacked)
        tokens = spans[-1][1]
        if not stacked:
            return Share(tokens, own, ())
        first, end = self._arrange(wanted)
        many = sum(stop - start for start, stop, _ in stacked)
        whole = tokens - many < LONG
        index = list(range(tokens)) if whole else [token for start, stop, _ in stacked for token in range(start, stop)]
        foreign_KS = torch.ones(end - first, len(index), dtype=torch.bool)
        at = 0
        for start, stop, name in stacked:
            at = start if whole else at
            row = self.placed[name] - first
            foreign_KS[row : row + self.ranks[name], at : at + stop - start] = False
            at += stop - start
        index_S = None if whole else torch.tensor(index, device=device)
        return Share(tokens, own, stacked, (first, end), index_S, foreign_KS.to(device))

    def touch(self, share: Share) -> None:
        """They were asked for again."""
        for _, _, name in share.stacked:
            self.placed[name] = self.placed.pop(name)

    def tensors(self) -> Iterator[Tensor]:
        """What the stacks take beside the adapters themselves."""
        for group in self.groups:
            yield from group.stack_tensors

    def _arrange(self, wanted: Mapping[str, int]) -> tuple[int, int]:
        """Let all of these have rows, near each other; (first row, behind the last one)."""
        needed = sum(wanted.values())
        if needed > self.rows:
            self._empty(min(self.most_rows, max(FEWEST_ROWS, 1 << (needed - 1).bit_length())))
        for name in wanted:
            if name in self.placed:
                self.placed[name] = self.placed.pop(name)
        for name, rank in wanted.items():
            if name not in self.placed:
                first = self._gap(rank, wanted)
                if first is None:
                    return self._side_by_side(wanted)
                self._write(name, first)
        first, end = self._extent(wanted)
        return (first, end) if end - first <= max(2 * needed, 2 * FEWEST_ROWS) else self._side_by_side(wanted)

    def _gap(self, rank: int, wanted: Mapping[str, int]) -> int | None:
        """The first row of a free stretch; others leave for it, never those that are wanted."""
        while True:
            at = 0
            for first, end in sorted((first, first + self.ranks[name]) for name, first in self.placed.items()):
                if first - at >= rank:
                    return at
                at = end
            if self.rows - at >= rank:
                return at
            if (last := next((name for name in self.placed if name not in wanted), None)) is None:
                return None
            del self.placed[last]

    def _side_by_side(self, wanted: Mapping[str, int]) -> tuple[int, int]:
        needed = sum(wanted.values())
        self.placed = {name: first for name, first in self.placed.items() if name not in wanted and first >= needed}
        at = 0
        for name, rank in wanted.items():
            self._write(name, at)
            at += rank
        return 0, needed

    def _extent(self, wanted: Mapping[str, int]) -> tuple[int, int]:
        return min(self.placed[name] for name in wanted), max(self.placed[name] + rank for name, rank in wanted.items())

    def _write(self, name: str, first: int) -> None:
        self.placed[name] = first
        self.version += 1
        for group in self.groups:
            group.write(name, first, self.ranks[name])

    def _empty(self, rows: int) -> None:
        self.rows, self.placed = rows, {}
        self.version += 1
        for group in self.groups:
            group.make_room(rows)


def _beyond(share: Share, number: int, here: Mapping[str, Factors]) -> Tensor:
    """DoRA's factors less 1 of each token that goes by the stack; zeros where its adapter has none. [S, O]"""
    names = [name for _, _, name in share.stacked if name in here and number in here[name].beyonds_O]
    rows = {name: row for row, name in enumerate(dict.fromkeys(names), 1)}
    some = next(factors.beyonds_O[number] for factors in here.values() if number in factors.beyonds_O)
    table = torch.stack([torch.zeros_like(some), *(here[name].beyonds_O[number] for name in rows)])
    whole = share.index_S is None
    which = [0] * (share.tokens if whole else sum(end - start for start, end, _ in share.stacked))
    at = 0
    for start, end, name in share.stacked:
        at = start if whole else at
        which[at : at + end - start] = [rows.get(name, 0)] * (end - start)
        at += end - start
    return table[torch.tensor(which, device=some.device)]


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a linear layer computes in."""
    chosen: torch.dtype = layer.dtype if is_nf4(layer) else layer.weight.dtype  # type: ignore[assignment, union-attr]
    return chosen
