"""Paged states: never read before they have arrived, never written over before they have left."""

from typing import Any

import torch
from torch import nn

from tests.step.test_host_store import LateCopies
from tunesmith.step.adam8bit import Adam8bit
from tunesmith.step.pages import Pages

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def tensors():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(80, 64)) for _ in range(4)] + [nn.Parameter(torch.randn(7))]


def run(parameters, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_paged_is_unpaged_to_the_bit():
    plain, paged = tensors(), tensors()
    pages = Pages(LateCopies(), torch.device("cpu"))
    first, second = Adam8bit([{"params": plain}], **SETTINGS), Adam8bit([{"params": paged}], **SETTINGS, pages=pages)
    run(plain, first, 5)
    run(paged, second, 5)
    pages.settle()
    assert all(torch.equal(a, b) for a, b in zip(plain, paged, strict=True))
    for a, b in zip(plain, paged, strict=True):
        assert all(torch.equal(first.state[a][key], value) for key, value in second.state[b].items())


def test_the_next_ones_states_are_sent_for_within_a_step_and_not_beyond():
    copies = LateCopies()
    pages = Pages(copies, torch.device("cpu"))
    host = [{"m": pages.page(torch.full((3,), float(i)))} for i in range(3)]
    keys = [object() for _ in host]

    def step():
        pages.begin()
        counts = []
        for key, states in zip(keys, host, strict=True):
            found = pages.fetch(key, states)
            counts.append(len(copies.sent_for))
            pages.store(key, {"m": found["m"] + 10}, states)
        return counts

    assert step() == [1, 2, 3], "no order is known yet"
    assert step() == [5, 6, 6], "one ahead, the last one sends for nothing"
    pages.settle()
    assert [states["m"].tolist() for states in host] == [[20.0 + i] * 3 for i in range(3)]


def test_after_settle_what_was_written_to_the_host_is_what_is_fetched():
    pages = Pages(LateCopies(), torch.device("cpu"))
    host, keys = [{"m": pages.page(torch.zeros(3))} for _ in range(2)], [object(), object()]
    for _ in range(2):
        pages.begin()
        for key, states in zip(keys, host, strict=True):
            pages.store(key, {"m": pages.fetch(key, states)["m"] + 1}, states)
    pages.begin()
    pages.fetch(keys[0], host[0])  # the second's is on its way now
    pages.settle()
    host[1]["m"].fill_(5.0)
    assert pages.fetch(keys[1], host[1])["m"].tolist() == [5.0] * 3
