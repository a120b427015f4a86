"""Rows of slabs: what lies in them survives moves, a budget is kept, and what was left behind does no harm."""

import numpy as np
import pytest
import torch

from tunesmith.models.attention_layers import AttentionLayer
from tunesmith.serve.builtin.cache import SMALLEST, Cache, Room, bytes_per_token

LAYERS = [AttentionLayer("a", 0, 2, 4), AttentionLayer("b", 1, 1, 8)]  # heads and sizes differ between layers


def made(limit: int = 4096, longest: int = 1024, answers: int = 8) -> Cache:
    return Cache(LAYERS, torch.float32, torch.device("cpu"), limit, longest, answers)


def write(room: Room, length: int, value: float) -> None:
    room.length = length
    for whole in (*room.slab.keys, *room.slab.values):
        whole[room.row, :, :length] = value


def holds(room: Room, length: int, value: float) -> bool:
    return all(bool((whole[room.row, :, :length] == value).all()) for whole in (*room.slab.keys, *room.slab.values))


def test_rows_are_powers_of_two_and_the_longest() -> None:
    cache = made(longest=300)
    assert [cache.capacity_for(tokens) for tokens in (1, 64, 65, 256, 257, 300)] == [64, 64, 128, 256, 300, 300]
    assert SMALLEST == 64
    first, second = cache.take(100), cache.take(128)
    assert first is not None and second is not None and first.slab is second.slab and first.row != second.row
    assert [part.shape for part in first.slab.keys] == [(2, 2, 128, 4), (2, 1, 128, 8)]  # a sixteenth of 4096 tokens
    assert bytes_per_token(LAYERS, torch.float32) == 2 * (8 + 8) * 4


def test_an_answer_that_outgrows_its_row_keeps_what_it_has() -> None:
    cache = made()
    room, other = cache.take(60), cache.take(60)
    assert room is not None and other is not None
    write(room, 64, 3.0)
    write(other, 10, 5.0)
    assert cache.grow(room, 64) and room.capacity == 64
    assert cache.grow(room, 65) and room.capacity == 128
    assert holds(room, 64, 3.0) and holds(other, 10, 5.0) and room.slab.rooms[room.row] is room
    assert cache.filled == 74
    again = cache.take(60)
    assert again is not None and again.slab is other.slab  # the row that was left


def test_a_budget_is_kept_and_empty_slabs_go_first() -> None:
    cache = made(limit=256, longest=1024)
    assert cache.longest == 256
    rooms = [cache.take(64) for _ in range(4)]
    assert all(rooms) and cache.take(64) is None and cache.allocated == 256
    assert rooms[0] is not None and not cache.grow(rooms[0], 65)
    for room in rooms:
        assert room is not None
        cache.free(room)
    whole = cache.take(256)
    assert whole is not None and cache.allocated == 256 and len(cache.slabs) == 1


def test_beginnings_take_what_is_left_and_give_way() -> None:
    cache = made(limit=576)
    room = cache.take(64)
    assert room is not None
    write(room, 64, 2.0)
    cache.keep("a", list(range(60)), room, 4)
    assert cache.beginnings.tokens == 64 and cache.allocated == 128
    found = cache.beginnings.find("a", np.arange(50))
    assert found is not None and found[1] == 50 and all(bool((part == 2.0).all()) for part in found[0].keys)
    assert cache.take(448) is not None  # needs the memory of the beginning
    assert cache.beginnings.entries == [] and cache.allocated <= 576
    cache.keep("a", list(range(60)), room, 4)  # no room any more
    assert cache.beginnings.entries == []


def test_holes_are_closed_when_they_are_many() -> None:
    cache = made(limit=65536)
    rooms = [cache.take(64) for _ in range(8)]
    for number, room in enumerate(rooms):
        assert room is not None
        write(room, 20 + number, float(number))
    for room in rooms[:5]:
        assert room is not None
        cache.free(room)
    slab = cache.slabs[0]
    assert (slab.used, slab.extent) == (3, 8)
    cache.compact()
    assert slab.extent <= 4
    for number, room in list(enumerate(rooms))[5:]:
        assert room is not None and slab.rooms[room.row] is room and holds(room, 20 + number, float(number))


def test_what_a_broken_answer_leaves_is_wiped() -> None:
    cache = made()
    room = cache.take(60)
    assert room is not None
    write(room, 64, float("nan"))
    cache.free(room, broken=True)
    assert all(bool(whole.isfinite().all()) for whole in (*room.slab.keys, *room.slab.values))


def test_memory_that_others_have_taken_is_no_longer_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = made()
    assert cache.take(60) is not None

    def none_left(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "zeros", none_left)
    assert cache.take(200) is None and cache.limit == cache.allocated == 256
