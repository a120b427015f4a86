"""Tensors that wait in host memory between the forward and the backward pass.

A block's input is copied out while the next block computes, and copied in while the block behind it is computed again: both on
a stream of their own, two at a time, so that the device holds at most two of them besides the one in use. Host buffers are
pinned (a copy from pageable memory would stop the device) and used again from row to row.

    device   ▏block 0▕▏block 1▕▏block 2▕ ...   ▏block 2 again, backward▕▏block 1 again, backward▕
    copies            ▏ out 0 ▕▏ out 1 ▕                ▏    in 1     ▕▏   in 0   ▕
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

IN_FLIGHT = 2  # copies out whose source is still held: one that runs, one that waits for it


class Copies(Protocol):
    """How a device copies beside its computation. An event is whatever `wait` understands."""

    def buffer(self, like: Tensor) -> Tensor:
        """Host memory that copies may run to and from while the device computes."""

    def out(self, source: Tensor, host: Tensor) -> Any:
        """Begin to copy to the host once what is queued for the device now is done; the event of its end."""

    def back(self, host: Tensor, device: torch.device) -> tuple[Tensor, Any]:
        """Begin to copy into a new tensor of the device; the event of its end."""

    def wait(self, event: Any) -> None:
        """Let what is queued for the device from now on begin after the event. The host itself does not wait."""

    def finish(self) -> None:
        """Let the host wait until every copy is done: it is going to read what was copied out."""


class CudaCopies:
    """Copies on a side stream of the current CUDA device."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def buffer(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def out(self, source: Tensor, host: Tensor) -> torch.cuda.Event:
        self.stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self.stream):
            host.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def back(self, host: Tensor, device: torch.device) -> tuple[Tensor, torch.cuda.Event]:
        # the target is the computing stream's memory: what lay there before must have been read when the copy begins
        target = torch.empty(host.shape, dtype=host.dtype, device=device)
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)
            return target, self.stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        self.stream.synchronize()


@dataclass(eq=False)
class Lent:
    """A tensor that is on the host now. `arriving` once its copy back has begun."""

    host: Tensor
    device: torch.device
    give_back: Callable[[Tensor], None]
    wait: Callable[[Any], None]
    before: "Lent | None"  # what was put just before, which the backward pass will want next
    arriving: tuple[Tensor, Any] | None = field(default=None)

    def __del__(self) -> None:
        if self.arriving is not None:  # sent for and never used: its memory must not be used again while the copy still writes
            self.wait(self.arriving[1])
        self.give_back(self.host)


class HostStore:
    """`put` on the way forward, `get` on the way back, last in first out (another order costs time, never the result)."""

    def __init__(self, copies: Copies):
        self.copies = copies
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._leaving: deque[tuple[Tensor, Any]] = deque()
        self._last: Lent | None = None

    def put(self, tensor: Tensor) -> Lent:
        """Begin to copy a tensor to the host. The caller may drop it at once."""
        tensor = tensor.detach()
        key = (tensor.shape, tensor.dtype)
        host = self._free[key].pop() if self._free.get(key) else self.copies.buffer(tensor)
        self._leaving.append((tensor, self.copies.out(tensor, host)))
        while len(self._leaving) > IN_FLIGHT:  # the source's memory may be used again only after it was read
            _, event = self._leaving.popleft()
            self.copies.wait(event)
        self._last = Lent(host, tensor.device, self._back_to_pool(key), self.copies.wait, self._last)
        return self._last

    def get(self, lent: Lent) -> Tensor:
        """The tensor on its device again; the one that was put before it is sent for."""
        self._leaving_is_over()
        tensor, event = self._sent_for(lent)
        self.copies.wait(event)
        if lent.before is not None:
            self._sent_for(lent.before)
        lent.arriving, lent.before = None, None
        return tensor

    def _sent_for(self, lent: Lent) -> tuple[Tensor, Any]:
        if lent.arriving is None:
            lent.arriving = self.copies.back(lent.host, lent.device)
        return lent.arriving

    def _leaving_is_over(self) -> None:
        """The way back has begun: nothing leaves any more, and what was put last is forgotten by the store."""
        while self._leaving:
            _, event = self._leaving.popleft()
            self.copies.wait(event)
        self._last = None

    def _back_to_pool(self, key: tuple[torch.Size, torch.dtype]) -> Callable[[Tensor], None]:
        pool = self._free.setdefault(key, [])
        return pool.append
