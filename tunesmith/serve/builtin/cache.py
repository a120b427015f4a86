"""Where the keys and values of all answers lie: rows of slabs.

    slab of capacity 512      ┌ row 0 │ answer 7  ██████████████░░░░░░░ │      one tensor [R, K, capacity, E] for keys and one for
      8 rows, every layer     │ row 1 │ answer 3  █████░░░░░░░░░░░░░░░░ │      values in each layer, so that one batched call attends
                              └ row 2 │ (free)                          │      for all answers of a slab that are decoding

Capacities are powers of two: a row is at most half empty, and an answer that outgrows its own moves to the next, so that a token is
copied less than once over a whole answer. Nothing else is ever copied in a step. Pages (as other engines have them) would
waste less memory, but plain batched products cannot read through a table of pages, and gathering them copies the cache at every step.

Slabs are made when they are needed, within a budget of tokens, and given back when others need theirs. What is left of the budget
keeps how finished answers began (`beginnings.py`).

Shapes: R rows of a slab, K key/value heads, E head size, n tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.models.attention_layers import AttentionLayer
from tunesmith.serve.builtin.beginnings import Beginnings

SMALLEST = 64  # tokens of the smallest rows
SLAB_TOKENS = 8192  # of a slab with many rows; a step calls attention once for each slab
LARGEST_SHARE = 16  # a slab is no more than this part of the budget, unless it is one row


@dataclass(slots=True, eq=False)
class Slab:
    """Rows of one capacity. `rooms` says whose they are."""

    capacity: int
    keys: list[Tensor]  # of each layer, [R, K, capacity, E]
    values: list[Tensor]
    rooms: "list[Room | None]"

    @property
    def tokens(self) -> int:
        return self.capacity * len(self.rooms)

    @property
    def used(self) -> int:
        return sum(room is not None for room in self.rooms)

    @property
    def extent(self) -> int:
        """Rows up to the last one in use."""
        return max((row + 1 for row, room in enumerate(self.rooms) if room is not None), default=0)


@dataclass(slots=True, eq=False)
class Room:
    """The row of one answer, and how many of its positions are filled. It may move."""

    slab: Slab
    row: int
    length: int = 0

    @property
    def capacity(self) -> int:
        return self.slab.capacity


class Cache:
    """All slabs. For one thread."""

    def __init__(self, layers: Sequence[AttentionLayer], dtype: torch.dtype, device: torch.device, limit: int, longest: int, answers: int):
        """`limit`: tokens of all rows and beginnings; `longest`: those of the longest answer, prompt and prefix included;
        `answers`: how many there are at most at once."""
        self.layers, self.dtype, self.device = layers, dtype, device
        self.limit, self.longest, self.answers = limit, min(longest, limit), answers
        self.slabs: list[Slab] = []
        self.beginnings = Beginnings()
        self._slab_tokens = min(SLAB_TOKENS, limit // LARGEST_SHARE)

    @property
    def allocated(self) -> int:
        """Tokens that slabs and beginnings have room for."""
        return sum(slab.tokens for slab in self.slabs) + self.beginnings.tokens

    @property
    def filled(self) -> int:
        """Tokens of answers that are being computed."""
        return sum(room.length for slab in self.slabs for room in slab.rooms if room is not None)

    def take(self, tokens: int) -> Room | None:
        """A row for so many tokens, or None while others have the memory."""
        capacity = self.capacity_for(tokens)
        slab = next((slab for slab in self.slabs if slab.capacity == capacity and None in slab.rooms), None) or self._slab(capacity)
        if slab is None:
            return None
        row = slab.rooms.index(None)
        slab.rooms[row] = room = Room(slab, row)
        return room

    def capacity_for(self, tokens: int) -> int:
        assert tokens <= self.longest, f"{tokens} tokens in a cache for {self.longest}"
        capacity = SMALLEST
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.longest)

    def grow(self, room: Room, tokens: int) -> bool:
        """Let a row hold so many tokens, if need be elsewhere; False while others have the memory."""
        if tokens <= room.capacity:
            return True
        if (larger := self.take(tokens)) is None:
            return False
        self.copy(room, larger, room.length)
        self.free(room)
        room.slab, room.row = larger.slab, larger.row
        room.slab.rooms[room.row] = room
        return True

    def copy(self, source: Room, target: Room, tokens: int) -> None:
        """The first positions of one row into another."""
        for mine, theirs in ((source.slab.keys, target.slab.keys), (source.slab.values, target.slab.values)):
            for from_RKCE, to_RKCE in zip(mine, theirs, strict=True):
                to_RKCE[target.row, :, :tokens].copy_(from_RKCE[source.row, :, :tokens])

    def free(self, room: Room, broken: bool = False) -> None:
        """Give a row back. What a broken answer left there is wiped: a masked NaN is still one."""
        room.slab.rooms[room.row] = None
        if broken:
            for whole in (*room.slab.keys, *room.slab.values):
                whole[room.row].zero_()

    def compact(self) -> None:
        """Close holes where they are many: a step computes a slab's rows up to the last one in use."""
        for slab in self.slabs:
            used = slab.used
            while slab.extent > used + max(1, used // 4):
                source = slab.rooms[slab.extent - 1]
                assert source is not None
                target = Room(slab, slab.rooms.index(None))
                self.copy(source, target, source.length)
                slab.rooms[source.row], slab.rooms[target.row] = None, source
                source.row = target.row

    def keep(self, adapter: str, ids: Sequence[int], room: Room, before: int) -> None:
        """Remember how an answer began, if the budget has room for it: `before` positions of a prefix, then those of `ids`."""
        tokens = before + len(ids)
        while self.allocated + tokens > self.limit and (self._drop_empty_slab() or self.beginnings.drop_oldest()):
            pass
        if self.allocated + tokens <= self.limit:
            keys, values = ([part[room.row, :, :tokens].clone() for part in parts] for parts in (room.slab.keys, room.slab.values))
            self.beginnings.keep(adapter, ids, keys, values, before)

    def _slab(self, capacity: int) -> Slab | None:
        """A new one, with fewer rows where that is all that fits."""
        rows = max(1, min(self.answers, self._slab_tokens // capacity))
        while self.allocated + rows * capacity > self.limit and (self._drop_empty_slab() or self.beginnings.drop_oldest()):
            pass
        rows = min(rows, (self.limit - self.allocated) // capacity)
        if rows < 1:
            return None
        try:  # zeros: what is not filled is masked, and a masked NaN would still be one
            keys, values = ([self._zeros(rows, layer, capacity) for layer in self.layers] for _ in range(2))
        except RuntimeError:  # others have taken memory that was free at the start
            self.limit = self.allocated
            return None
        slab = Slab(capacity, keys, values, [None] * rows)
        self.slabs.append(slab)
        return slab

    def _zeros(self, rows: int, layer: AttentionLayer, capacity: int) -> Tensor:
        return torch.zeros(rows, layer.heads, capacity, layer.size, dtype=self.dtype, device=self.device)

    def _drop_empty_slab(self) -> bool:
        empty = next((slab for slab in self.slabs if not slab.used), None)
        if empty is not None:
            self.slabs.remove(empty)
        return empty is not None


def bytes_per_token(layers: Sequence[AttentionLayer], dtype: torch.dtype) -> int:
    """Keys and values of one position in all layers."""
    return sum(2 * layer.heads * layer.size for layer in layers) * dtype.itemsize
