"""Which adapters stand in the stacks of low-rank factors, and in which slot: the same in the stacks of every layer.

    width 8    │ a │ b │   │ c │     slots of adapters of rank 5 to 8; a step that asks for b and c reads the slice from b to c
    width 16   │ d │ e │

An adapter that is asked for together with others gets a slot, into which its factors are copied, and keeps it until others need the
room, the one asked for longest ago first: from step to step nothing is copied. There are stacks for each width (a power of two), so
that small ranks do not pay for large ones.

An adapter that is alone at its width, long stretches, and whoever finds no room go by their own factors.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.serve.builtin.low_rank import Batch, Factors, Group, Share

LONG = 8  # tokens of a stretch that does not go by a stack: every adapter there would be given as many
NARROWEST = 4
FEWEST_SLOTS, MOST_ROWS = 8, 256  # of a width's stack; rows: slots times width
_NEAR = 8  # slots that a step may always read, whoever stands between those that it asks for

Stretch = tuple[int, int, str]  # (first token, behind the last one, adapter)


class Slots:
    """The slots of one width."""

    def __init__(self, width: int, most: int):
        self.width, self.most = width, most
        self.count = 0
        self.placed: dict[str, int] = {}  # slot by adapter, the one asked for longest ago first

    def touch(self, names: Sequence[str]) -> None:
        """They were asked for."""
        for name in names:
            if name in self.placed:
                self.placed[name] = self.placed.pop(name)

    def arrange(self, names: Sequence[str]) -> tuple[tuple[int, int], list[str]]:
        """((first slot, behind the last one) of these, those that are new in theirs), near each other; there is room for them."""
        self.touch(names)
        new = []
        for name in names:
            if name not in self.placed:
                self.placed[name] = self._free(names)
                new.append(name)
        slots = [self.placed[name] for name in names]
        if max(slots) + 1 - min(slots) <= max(2 * len(names), _NEAR):
            return (min(slots), max(slots) + 1), new
        self.placed = {name: slot for name, slot in self.placed.items() if name not in names and slot >= len(names)}
        self.placed |= {name: slot for slot, name in enumerate(names)}
        return (0, len(names)), list(names)

    def _free(self, names: Sequence[str]) -> int:
        taken = set(self.placed.values())
        free = next((slot for slot in range(self.count) if slot not in taken), None)
        if free is None:
            free = self.placed.pop(next(name for name in self.placed if name not in names))
        return free


class Stacks:
    """The stacks of all groups of layers."""

    def __init__(self, groups: Sequence[Group], most_rows: int = MOST_ROWS):
        self.groups, self.most_rows = groups, most_rows
        self.version = 0  # rises when slots change hands
        self._widths: dict[str, int] = {}  # by adapter
        self._slots: dict[int, Slots] = {}

    def add(self, name: str, factors: Mapping[int, Factors]) -> None:
        """Know an adapter by its factors by group."""
        if not factors:
            return
        width = self._widths[name] = width_of(max(each.rank for each in factors.values()))
        for at, each in factors.items():
            group = self.groups[at]
            group.factors[name] = each
            stack = group.stacks.get(width)
            lacks = stack is None or not set(each.numbers) <= set(stack.at) or (each.beyonds_O and not stack.beyonds_SO)
            if lacks and width in self._slots:
                self._slots[width].count = 0  # made anew, with these layers, when it is next asked for

    def remove(self, name: str) -> None:
        """Forget it; its slot is free."""
        self.version += 1
        width = self._widths.pop(name, 0)
        for group in self.groups if width else ():
            group.factors.pop(name, None)
        if width in self._slots:
            self._slots[width].placed.pop(name, None)
        if width not in self._widths.values():
            self._slots.pop(width, None)
            for group in self.groups:
                group.stacks.pop(width, None)

    def share(self, spans: Sequence[Stretch], device: Any) -> Share:
        """How the tokens of a row are computed; those that go by stacks get their slots."""
        named = [span for span in spans if span[2] in self._widths]
        chosen: dict[int, dict[str, None]] = {}
        for start, end, name in named:
            width = self._widths[name]
            names = chosen.setdefault(width, {})
            if end - start <= LONG and (len(names) + 1) * width <= self.most_rows:
                names[name] = None
        stacked = {name for names in chosen.values() if len(names) > 1 for name in names}
        short = [span for span in named if span[2] in stacked and span[1] - span[0] <= LONG]
        batches = tuple(
            self._batch(width, [span for span in short if span[2] in names], spans[-1][1], device)
            for width, names in chosen.items()
            if len(names) > 1
        )
        return Share(spans[-1][1], tuple(span for span in named if span not in short), batches)

    def order(self, name: str) -> tuple[int, int]:
        """(width, slot); behind all slots who has none, and before all widths who goes by no stack."""
        width = self._widths.get(name, 0)
        slots = self._slots.get(width)
        return width, slots.placed.get(name, slots.count) if slots is not None else 0

    def touch(self, share: Share) -> None:
        """Its adapters were asked for again."""
        for batch in share.batches:
            self._slots[batch.width].touch(batch.names)

    def tensors(self) -> Iterator[Tensor]:
        """What the stacks take beside the adapters themselves."""
        for group in self.groups:
            for stack in list(group.stacks.values()):  # whoever counts does not wait for the row that is computed
                yield from stack.tensors

    def _batch(self, width: int, spans: Sequence[Stretch], tokens: int, device: Any) -> Batch:
        names = tuple(dict.fromkeys(name for _, _, name in spans))
        slots = self._slots.setdefault(width, Slots(width, self.most_rows // width))
        if len(names) > slots.count:
            self._make(slots, len(names))
        (first, behind), new = slots.arrange(names)
        for name in new:
            self.version += 1
            for group in self.groups:
                if (stack := group.stacks.get(width)) is not None:
                    stack.write(slots.placed[name], group.factors.get(name))
        by_slot: list[list[int]] = [[] for _ in range(first, behind)]
        for start, end, name in spans:
            by_slot[slots.placed[name] - first] += range(start, end)
        most = max(map(len, by_slot))
        if [token for each in by_slot for token in each] == list(range(tokens)) and len({len(each) for each in by_slot}) == 1:
            nothing = torch.empty(0, dtype=torch.long)
            return Batch(width, (first, behind), names, None, nothing, nothing, None)
        most = 1 << (most - 1).bit_length()  # a product of 3 takes longer than one of 4
        padded = [token for each in by_slot for token in [*each, *[0] * (most - len(each))]]
        real = sorted((token, slot, slot * most + place) for slot, each in enumerate(by_slot) for place, token in enumerate(each))
        at, whose, taken = (list(column) for column in zip(*real, strict=True))
        numbers = torch.tensor([*padded, *taken, *whose, *at]).to(device)
        index_M, taken_N, slot_N, tokens_N = numbers.split([len(padded), len(real), len(real), len(real)])
        return Batch(width, (first, behind), names, index_M, taken_N, slot_N, None if len(real) == tokens else tokens_N)

    def _make(self, slots: Slots, needed: int) -> None:
        """Empty stacks with room for so many, at least; who stood there is written again when it is asked for."""
        self.version += 1
        count = min(slots.most, max(FEWEST_SLOTS, 1 << (needed - 1).bit_length()))
        slots.count, slots.placed = 0, {}  # so they stay where memory does not suffice: the next step tries again
        names = [name for name, width in self._widths.items() if width == slots.width]
        for group in self.groups:
            group.stack(slots.width, count, names)
        slots.count = count


def width_of(rank: int) -> int:
    """The width of the stacks that an adapter of this rank goes by."""
    return max(NARROWEST, 1 << (rank - 1).bit_length())
