"""Optimizer states in host memory, on the device only while their tensor is moved.

Tensors are moved in the same order step after step. Once an order is known, the states of the next one are sent for while this
one is moved, and states go back on the same side stream: the device holds those of three tensors at most.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tunesmith.step.host_store import IN_FLIGHT, Copies

Sent = tuple[dict[str, Tensor], list[Any]]  # states on the device, and the events of their arrival


class Pages:
    """`fetch` a tensor's states, move them, `store` them. Keys are compared by identity."""

    def __init__(self, copies: Copies, device: torch.device):
        self.copies, self.device = copies, device
        self._next: dict[int, tuple[int, dict[str, Tensor]]] = {}  # key -> what was fetched after it the last time
        self._before: int | None = None
        self._arriving: dict[int, Sent] = {}
        self._leaving: deque[tuple[dict[str, Tensor], list[Any]]] = deque()

    def begin(self) -> None:
        """A step begins: the last tensor of one is not followed by the first of the next, whose states would wait on the device."""
        self._before = None

    def page(self, state: Tensor) -> Tensor:
        """Host memory that holds the state."""
        return self.copies.buffer(state).copy_(state)

    def fetch(self, key: Any, host: dict[str, Tensor]) -> dict[str, Tensor]:
        """The states on the device. What was fetched after them the last time is sent for."""
        states, events = self._arriving.pop(id(key)) if id(key) in self._arriving else self._send(host)
        for event in events:
            self.copies.wait(event)
        if self._before is not None:
            self._next[self._before] = (id(key), host)
        self._before = id(key)
        following = self._next.get(id(key))
        if following is not None and following[0] != id(key) and following[0] not in self._arriving:
            self._arriving[following[0]] = self._send(following[1])
        return states

    def store(self, key: Any, states: Mapping[str, Tensor], host: Mapping[str, Tensor]) -> None:
        """Begin to copy moved states back to the host; they may be dropped at once."""
        self._leaving.append((dict(states), [self.copies.out(state, host[name]) for name, state in states.items()]))
        while len(self._leaving) > IN_FLIGHT:
            for event in self._leaving.popleft()[1]:
                self.copies.wait(event)

    def settle(self) -> None:
        """Whoever reads or writes the host's states now finds them whole, and finds what they wrote the next time."""
        for _, events in [*self._leaving, *self._arriving.values()]:
            for event in events:
                self.copies.wait(event)
        self._leaving.clear()
        self._arriving.clear()
        self.copies.finish()

    def _send(self, host: Mapping[str, Tensor]) -> Sent:
        sent = {name: self.copies.back(state, self.device) for name, state in host.items()}
        return {name: state for name, (state, _) in sent.items()}, [event for _, event in sent.values()]
