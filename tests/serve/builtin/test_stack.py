import itertools

import pytest
import torch
from torch import nn

from tunesmith.serve.builtin.low_rank import Group, factors_of
from tunesmith.serve.builtin.stack import FEWEST_SLOTS, LONG, Slots, Stacks, width_of


def stacks_of(ranks: dict[str, int], most_rows: int = 64, layers: int = 2) -> Stacks:
    """Two layers of one input, and adapters of these ranks that are all ones times a number of their own."""
    groups = [Group(0, [nn.Linear(6, 4, bias=False).requires_grad_(False) for _ in range(layers)])]
    stacks = Stacks(groups, most_rows)
    for number, (name, rank) in enumerate(ranks.items(), 1):
        given = {at: (torch.full((rank, 6), float(number)), torch.ones(4, rank), None) for at in range(layers)}
        stacks.add(name, {0: factors_of(given, torch.float32)})
    return stacks


def spans_of(*counts: tuple[str, int]) -> list[tuple[int, int, str]]:
    ends = list(itertools.accumulate(count for _, count in counts))
    return [(end - count, end, name) for end, (name, count) in zip(ends, counts, strict=True)]


def test_widths_are_powers_of_two() -> None:
    assert [width_of(rank) for rank in (1, 4, 5, 8, 9, 64)] == [4, 4, 8, 8, 16, 64]


def test_slots_stay_with_those_that_are_asked_for_most_recently() -> None:
    slots = Slots(8, 8)
    slots.count = 4
    assert slots.arrange(["a", "b", "c"]) == ((0, 3), ["a", "b", "c"])
    assert slots.arrange(["a", "c"]) == ((0, 3), []), "nothing moves"
    assert slots.arrange(["c", "d"]) == ((2, 4), ["d"])
    assert slots.arrange(["a", "e"]) == ((0, 2), ["e"]), "b was asked for longest ago"
    assert slots.placed == {"c": 2, "d": 3, "a": 0, "e": 1}


def test_those_that_stand_far_apart_are_brought_together() -> None:
    slots = Slots(8, 64)
    slots.count = 64
    slots.arrange([f"a{number}" for number in range(40)])
    assert slots.arrange(["a0", "a39"]) == ((0, 2), ["a0", "a39"])
    assert slots.placed["a2"] == 2 and "a1" not in slots.placed, "others stay where there is room"


def test_what_goes_by_stacks_and_what_by_its_own_products() -> None:
    stacks = stacks_of({"a": 4, "b": 3, "c": 16, "long": 4})
    share = stacks.share(spans_of(("a", 2), ("", 3), ("b", 1), ("c", 2), ("long", LONG + 1)), "cpu")
    assert [name for _, _, name in share.own] == ["c", "long"], "alone at its width, and a long stretch"
    [batch] = share.batches
    assert (batch.width, batch.names, batch.slots) == (4, ("a", "b"), (0, 2))
    assert batch.index_M is not None and batch.index_M.tolist() == [0, 1, 5, 0], "filled up with any token"
    assert batch.tokens_N is not None and batch.tokens_N.tolist() == [0, 1, 5]
    assert (batch.taken_N.tolist(), batch.slot_N.tolist()) == ([0, 1, 2], [0, 0, 1])
    alone = stacks.share(spans_of(("a", 2), ("", 2)), "cpu")
    assert not alone.batches and alone.own == ((0, 2, "a"),)


def test_a_row_in_the_order_of_the_slots_is_the_batch_itself() -> None:
    stacks = stacks_of({"a": 4, "b": 4})
    [batch] = stacks.share(spans_of(("a", 2), ("b", 2)), "cpu").batches
    assert batch.index_M is None
    [other] = stacks.share(spans_of(("b", 2), ("a", 2)), "cpu").batches
    assert other.index_M is not None and other.index_M.tolist() == [2, 3, 0, 1]
    assert other.taken_N.tolist() == [2, 3, 0, 1] and other.tokens_N is None, "added to the whole row, in its order"


def test_spans_sorted_by_slots_are_the_batch_itself() -> None:
    stacks = stacks_of({"a": 4, "b": 4, "c": 4, "d": 3, "wide": 16})
    stacks.share(spans_of(("b", 1), ("d", 1), ("a", 1)), "cpu")
    assert [stacks.order(name) for name in ("", "b", "d", "a", "c", "wide")] == [(0, 0), (4, 0), (4, 1), (4, 2), (4, FEWEST_SLOTS), (16, 0)]
    names = sorted(["a", "b", "d"], key=stacks.order)
    [batch] = stacks.share(spans_of(*[(name, 1) for name in names]), "cpu").batches
    assert batch.index_M is None


@pytest.mark.parametrize("most_rows", [8, 16, 64])
def test_who_finds_no_room_is_computed_all_the_same(most_rows: int) -> None:
    names = {f"a{number}": 4 for number in range(9)}
    stacks = stacks_of(names, most_rows)
    spans = spans_of(*[(name, 1) for name in names])
    share = stacks.share(spans, "cpu")
    assert sum(len(batch.names) for batch in share.batches) == min(9, most_rows // 4)
    x = torch.ones(1, 9, 6)
    y = stacks.groups[0].output(0, x, share)[0] - stacks.groups[0].layers[0](x)[0]
    assert torch.allclose(y, torch.arange(1.0, 10)[:, None] * 6 * 4 * torch.ones(4)), "token i goes by adapter i"
    room = max(FEWEST_SLOTS, 16) if most_rows == 64 else most_rows // 4
    assert sum(tensor.numel() for tensor in stacks.tensors()) == room * 4 * (2 * 6 + 2 * 4), "bounded whatever the number of adapters"


def test_an_adapter_that_leaves_takes_its_stack_along() -> None:
    stacks = stacks_of({"a": 4, "b": 4, "c": 16})
    stacks.share(spans_of(("a", 1), ("b", 1)), "cpu")
    before = stacks.version
    stacks.remove("b")
    assert stacks.version > before, "rows that were described before are described anew"
    assert list(stacks.tensors()) and "b" not in stacks.groups[0].factors
    stacks.remove("a")
    assert not list(stacks.tensors())


def test_one_that_reaches_other_layers_makes_the_stack_anew() -> None:
    stacks = stacks_of({"a": 4, "b": 4}, layers=1)
    stacks.groups[0].layers = [*stacks.groups[0].layers, nn.Linear(6, 4, bias=False).requires_grad_(False)]
    stacks.share(spans_of(("a", 1), ("b", 1)), "cpu")
    stacks.add("c", {0: factors_of({1: (torch.ones(2, 6), torch.ones(4, 2), None)}, torch.float32)})
    share = stacks.share(spans_of(("a", 1), ("c", 1)), "cpu")
    x = torch.ones(1, 2, 6)
    first, second = (stacks.groups[0].output(number, x, share)[0] - stacks.groups[0].layers[number](x)[0] for number in (0, 1))
    assert torch.allclose(first, torch.tensor([[24.0], [0.0]]).expand(2, 4), atol=1e-5)
    assert torch.allclose(second, torch.tensor([[0.0], [12.0]]).expand(2, 4), atol=1e-5)


def test_a_stack_that_finds_no_memory_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """That row fails; one adapter alone needs no stack, and the next row finds everything whole."""
    stacks = stacks_of({"a": 4, "b": 4})

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(stacks.groups[0], "stack", full)
        with pytest.raises(torch.OutOfMemoryError):
            stacks.share(spans_of(("a", 1), ("b", 1)), "cpu")
        assert not stacks.share(spans_of(("a", 2)), "cpu").batches
    x = torch.ones(1, 2, 6)
    y = stacks.groups[0].output(0, x, stacks.share(spans_of(("a", 1), ("b", 1)), "cpu")) - stacks.groups[0].layers[0](x)
    assert torch.allclose(y[0, :, 0], torch.tensor([24.0, 48.0]), atol=1e-4)
