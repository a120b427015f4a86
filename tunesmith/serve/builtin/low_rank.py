"""Low-rank updates of many adapters beside frozen layers: two batched products whatever their number.

    y[t] = W·x[t] + up[a]ᵀ·(down[a]·x[t])         a: the adapter of token t
    DoRA: y[t] += y[t] ∘ beyond[a]

The factors of adapters in use stand one behind the other in a stack, and the tokens by the adapter that they go by, as many for each
(some twice, and not used): a product of a batch of thin matrices, in which no token meets another adapter's factors. Where a row is in
that order already nothing is gathered. One product over all factors at once, whose foreign columns are struck out, does the work of
every adapter for every token and took longer. A long stretch of one adapter's tokens (a prompt's) goes by products of its own.

Layers that read one input (q k v, gate up) have their `down` in one matrix: one product for all of them.

Shapes: T tokens of the row, N of them that go by a stack, S adapters of a batch with n tokens each, K rank, G layers that read one
input, I and O inputs and outputs of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.nf4 import is_nf4, shape_of, weight_of
from tunesmith.models.products import forward_of


@dataclass(frozen=True, slots=True)
class Factors:
    """What one adapter has beside the layers of a group, in the dtype that they compute in."""

    numbers: tuple[int, ...]  # of the layers in the group
    down_KGI: Tensor  # rows behind a layer's own rank are zeros
    ups_KO: Mapping[int, Tensor]  # by the layer's number, with the scale in it
    beyonds_O: Mapping[int, Tensor]  # of DoRA: the factor on base and update, less 1

    @property
    def rank(self) -> int:
        return self.down_KGI.shape[0]

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens that go by a stack, ordered by the slots of their adapters."""

    width: int  # of the stack: rows of a slot
    slots: tuple[int, int]  # first, and behind the last one
    names: tuple[str, ...]  # of the adapters that the tokens go by
    index_M: Tensor | None  # the S·n tokens of the row, slot by slot, filled up with any; None: the row itself is the batch
    taken_N: Tensor  # where each token that goes by the stack stands in the batch, in the row's order,
    slot_N: Tensor  # which slot it goes by, counted from the first,
    tokens_N: Tensor | None  # and where it stands in the row; None: all of the row does

    @property
    def count(self) -> int:
        return self.slots[1] - self.slots[0]


@dataclass(eq=False)
class Share:
    """Which tokens of a row go by which low-rank updates."""

    tokens: int
    own: tuple[tuple[int, int, str], ...]  # stretches (start, end, adapter) that go by the adapter's own products
    batches: tuple[Batch, ...] = ()  # of several widths
    works: dict[int, "Work"] = field(default_factory=dict)  # by group, made when first asked for


@dataclass(frozen=True, slots=True)
class Work:
    """What of a share concerns one group of layers."""

    own: tuple[tuple[int, int, Factors], ...]
    batches: tuple[tuple[Batch, "Stack", frozenset[int]], ...]  # with the numbers of the layers that have something
    scaled: frozenset[int]  # the layers at which a DoRA has something
    last: int  # of the layers that have something

    @property
    def is_idle(self) -> bool:
        return not (self.own or self.batches)


class Stack:
    """Factors of several adapters beside a group's layers, each in a slot."""

    def __init__(self, group: "Group", numbers: Sequence[int], slots: int, width: int, scaled: bool):
        first: Any = group.layers[0]
        like: dict[str, Any] = {"dtype": dtype_of(first), "device": first.weight.device}
        outputs = {number: shape_of(group.layers[number])[1] for number in numbers}
        self.at = {number: place for place, number in enumerate(numbers)}
        self.width = width
        self.down_SKGI = torch.zeros(slots, width, len(numbers), shape_of(first)[0], **like)
        self.ups_SKO = {number: torch.zeros(slots, width, out, **like) for number, out in outputs.items()}
        self.beyonds_SO = {number: torch.zeros(slots, out, **like) for number, out in outputs.items()} if scaled else {}

    def write(self, slot: int, factors: Factors | None) -> None:
        """Put an adapter into a slot. Nothing is left of the one before: what it had of a layer could be infinite, and 0 · inf is not 0."""
        exact = factors is not None and factors.numbers == tuple(self.at) and factors.rank == self.width
        if not exact:
            for whole in (self.down_SKGI, *self.ups_SKO.values()):
                whole[slot].zero_()
        if factors is None:
            return
        if exact:
            self.down_SKGI[slot].copy_(factors.down_KGI)
        else:
            for place, number in enumerate(factors.numbers):
                self.down_SKGI[slot, : factors.rank, self.at[number]] = factors.down_KGI[:, place]
        for number, up_KO in factors.ups_KO.items():
            self.ups_SKO[number][slot, : up_KO.shape[0]].copy_(up_KO)
        for number, beyond_SO in self.beyonds_SO.items():
            beyond_SO[slot] = factors.beyonds_O.get(number, 0)

    def narrowed(self, x_TI: Tensor, batch: Batch) -> Tensor:
        """What the tokens come to in the thin middle: [S, K, G, n]."""
        x_MI = x_TI if batch.index_M is None else x_TI.index_select(0, batch.index_M)
        down_SRI = self.down_SKGI[slice(*batch.slots)].flatten(1, 2)
        # on a CPU the factors' side must lie along the rows: see `products.thin`
        p_SRn = torch.bmm(down_SRI, x_MI.view(batch.count, -1, x_MI.shape[1]).transpose(1, 2))
        return p_SRn.view(batch.count, self.width, len(self.at), -1)

    def add(self, y_TO: Tensor, number: int, p_SKGn: Tensor, batch: Batch, scaled: bool) -> None:
        """Lay the updates of one layer on its own outputs."""
        p_SnK = p_SKGn[:, :, self.at[number]].transpose(1, 2)
        up_SKO, beyond_SO = self.ups_SKO[number][slice(*batch.slots)], self.beyonds_SO.get(number) if scaled else None
        if batch.index_M is None:
            y_SnO = y_TO.view(batch.count, -1, y_TO.shape[1]).baddbmm_(p_SnK, up_SKO)
            if beyond_SO is not None:
                y_SnO.addcmul_(y_SnO, beyond_SO[slice(*batch.slots), None])
            return
        added_NO = torch.bmm(p_SnK, up_SKO).view(-1, y_TO.shape[1]).index_select(0, batch.taken_N)
        if beyond_SO is not None:
            own_NO = y_TO if batch.tokens_N is None else y_TO.index_select(0, batch.tokens_N)
            added_NO.addcmul_(own_NO + added_NO, beyond_SO[slice(*batch.slots)].index_select(0, batch.slot_N))
        if batch.tokens_N is None:
            y_TO.add_(added_NO)
        else:
            y_TO.index_add_(0, batch.tokens_N, added_NO)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.down_SKGI, *self.ups_SKO.values(), *self.beyonds_SO.values()]


@dataclass(slots=True)
class _Narrow:
    """x through the thin factors of a group's layers, kept until the last of them has asked."""

    x: Tensor  # held, so that no other tensor can be taken for it
    version: int
    work: Work
    own_KGT: list[Tensor]
    batches_SKGn: list[Tensor]


class Group:
    """Linear layers that read one input, and what adapters have beside them."""

    def __init__(self, at: int, layers: Sequence[Any]):
        self.at, self.layers = at, layers
        self.factors: dict[str, Factors] = {}  # by adapter
        self.stacks: dict[int, Stack] = {}  # by width
        self._narrow: _Narrow | None = None

    def work(self, share: Share) -> Work:
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
        scaled = number in work.scaled
        bias_O: Any = layer.bias if scaled else None
        y_TO = forward_of(layer, x_TI) if bias_O is None else x_TI @ weight_of(layer).T
        narrow = self._narrowed(x, x_TI, work)
        for (batch, stack, numbers), p_SKGn in zip(work.batches, narrow.batches_SKGn, strict=True):
            if number in numbers:
                stack.add(y_TO, number, p_SKGn, batch, scaled)
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

    def _narrowed(self, x: Tensor, x_TI: Tensor, work: Work) -> _Narrow:
        version = -1 if x.is_inference() else x._version  # what inference mode makes tells no version
        kept = self._narrow
        if kept is not None and kept.x is x and kept.version == version and kept.work is work:
            return kept
        own = [torch.mm(f.down_KGI.flatten(0, 1), x_TI[start:end].T).view(*f.down_KGI.shape[:2], -1) for start, end, f in work.own]
        batches = [stack.narrowed(x_TI, batch) for batch, stack, _ in work.batches]
        self._narrow = _Narrow(x, version, work, own, batches)
        return self._narrow

    def _work(self, share: Share) -> Work:
        own = tuple((start, end, self.factors[name]) for start, end, name in share.own if name in self.factors)
        batches: list[tuple[Batch, Stack, frozenset[int]]] = []
        here = [factors for _, _, factors in own]
        for batch in share.batches:
            standing = [self.factors[name] for name in batch.names if name in self.factors]
            if standing:
                batches.append((batch, self.stacks[batch.width], frozenset(n for factors in standing for n in factors.numbers)))
            here += standing
        scaled = frozenset(number for factors in here for number in factors.beyonds_O)
        return Work(own, tuple(batches), scaled, max((number for factors in here for number in factors.numbers), default=0))

    def stack(self, width: int, slots: int, names: Sequence[str]) -> None:
        """An empty stack for the layers at which these adapters have something."""
        standing = [self.factors[name] for name in names if name in self.factors]
        self.stacks.pop(width, None)
        self._narrow = None
        if standing:
            numbers = sorted({number for factors in standing for number in factors.numbers})
            self.stacks[width] = Stack(self, numbers, slots, width, any(factors.beyonds_O for factors in standing))


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a linear layer computes in."""
    chosen: torch.dtype = layer.dtype if is_nf4(layer) else layer.weight.dtype  # type: ignore[assignment, union-attr]
    return chosen
