"""How answers began, kept behind their end: a customer's system prompt, or a conversation that goes on, is not computed again.

An entry is found by its adapter and by its token ids, and used as far as a new prompt goes along with it. The one that was used
longest ago is given up first.

Shapes: K key/value heads, n tokens of an entry, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

LEAST = 32  # tokens that are worth a copy


@dataclass(slots=True, eq=False)
class Beginning:
    """Keys and values of a prefix, if there is one (`before` positions), and of `ids`."""

    adapter: str
    ids: np.ndarray
    keys: list[Tensor]  # of each layer, [K, n, E]
    values: list[Tensor]
    before: int

    @property
    def tokens(self) -> int:
        return self.before + len(self.ids)


@dataclass(slots=True)
class Beginnings:
    """By last use, oldest first."""

    entries: list[Beginning] = field(default_factory=list)
    tokens: int = 0

    def find(self, adapter: str, ids: np.ndarray) -> tuple[Beginning, int] | None:
        """The entry that goes along with `ids` furthest, and how far; None where none goes `LEAST` tokens."""
        best, length = None, LEAST - 1
        for entry in self.entries:
            if entry.adapter == adapter and (common := common_length(entry.ids, ids)) > length:
                best, length = entry, common
        if best is None:
            return None
        self.entries.remove(best)
        self.entries.append(best)
        return best, length

    def keep(self, adapter: str, ids: Sequence[int], keys: list[Tensor], values: list[Tensor], before: int) -> None:
        """As the last one used. Entries that are no more than its own beginning are given up for it."""
        new = Beginning(adapter, np.asarray(ids), keys, values, before)
        for entry in [each for each in self.entries if each.adapter == adapter and common_length(each.ids, new.ids) == len(each.ids)]:
            self._drop(entry)
        self.entries.append(new)
        self.tokens += new.tokens

    def covers(self, adapter: str, ids: Sequence[int]) -> bool:
        """Whether nearly all of it is kept already."""
        found = self.find(adapter, np.asarray(ids))
        return found is not None and found[1] > len(ids) - LEAST

    def forget(self, adapter: str) -> None:
        """Everything of an adapter that is gone or exchanged."""
        for entry in [entry for entry in self.entries if entry.adapter == adapter]:
            self._drop(entry)

    def drop_oldest(self) -> bool:
        """Give one up; False where there is none."""
        if self.entries:
            self._drop(self.entries[0])
            return True
        return False

    def _drop(self, entry: Beginning) -> None:
        self.entries.remove(entry)
        self.tokens -= entry.tokens


def common_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many first ids are the same."""
    most = min(len(one), len(other))
    differs = one[:most] != other[:most]
    return int(differs.argmax()) if differs.any() else most
