"""Kept beginnings: found by adapter and ids, the longest first, the oldest given up first."""

import numpy as np
import torch

from tunesmith.serve.builtin.beginnings import LEAST, Beginnings, common_length


def keep(kept: Beginnings, adapter: str, ids: list[int], before: int = 0) -> None:
    part = [torch.zeros(1, len(ids) + before, 2)]
    kept.keep(adapter, ids, part, part, before)


def test_how_far_two_go_along() -> None:
    pairs = [([1, 2, 3], [1, 2, 4]), ([1, 2], [1, 2, 3]), ([], [1]), ([2], [1])]
    assert [common_length(np.array(one), np.array(other)) for one, other in pairs] == [2, 2, 0, 0]


def test_the_furthest_of_the_same_adapter_is_found() -> None:
    kept = Beginnings()
    keep(kept, "a", [*range(40), 99])
    keep(kept, "a", [*range(60), 99])
    keep(kept, "b", list(range(100)), before=5)
    found = kept.find("a", np.arange(80))
    assert found is not None and found[1] == 60
    assert kept.find("a", np.arange(LEAST - 1)) is None
    assert kept.find("c", np.arange(80)) is None
    assert kept.tokens == 41 + 61 + 105
    assert kept.covers("a", [*range(60), 7]) and not kept.covers("a", [*range(60 + LEAST)])


def test_a_longer_one_takes_the_place_of_its_own_beginning() -> None:
    kept = Beginnings()
    keep(kept, "a", list(range(40)))
    keep(kept, "b", list(range(40)))
    keep(kept, "a", list(range(50)))
    assert [(entry.adapter, entry.tokens) for entry in kept.entries] == [("b", 40), ("a", 50)] and kept.tokens == 90


def test_the_one_used_longest_ago_goes_first() -> None:
    kept = Beginnings()
    for first in (1, 2, 3):
        keep(kept, "a", [first, *range(100, 140)])
    kept.find("a", np.array([1, *range(100, 140)]))
    assert kept.drop_oldest() and [entry.ids[0] for entry in kept.entries] == [3, 1]
    kept.forget("a")
    assert kept.tokens == 0 and not kept.drop_oldest()
