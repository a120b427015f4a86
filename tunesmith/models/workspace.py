"""One stretch of memory for matrices that are made, used at once and forgotten: the largest of them sets its size.

A dequantised layer lives for one product. Made in fresh memory each time, matrices of many shapes cut an allocator's blocks into
pieces; in a workspace they cost what the largest costs, wherever in the model it stands.

What was lent is not asked back. A workspace is lent again only when nobody holds its memory any more, be it under another name, as a
view or for a backward pass; until then whoever asks gets memory of its own. So no caller has to know that there is a workspace.
"""

import threading
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(slots=True)
class _Workspace:
    room: Tensor  # [elements], flat
    holders: int  # of its storage while nothing is lent


_WORKSPACES: dict[tuple[torch.device, torch.dtype, int], _Workspace] = {}
_count = getattr(torch._C, "_storage_Use_Count", None)  # torch's own, without a promise that it stays
_LOCK = threading.Lock()  # a model may answer in one thread while it learns in another


def lend(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous tensor without values, that the caller may write to and keep for as long as it likes."""
    if _count is None:
        return torch.empty(shape, dtype=dtype, device=device)
    size = prod(shape)
    with _LOCK:
        key = device, dtype, _stream(device)
        found = _WORKSPACES.get(key)
        if found is not None and _holders(found.room) > found.holders:
            return torch.empty(shape, dtype=dtype, device=device)
        if found is None or found.room.numel() < size:
            if found is not None:
                del _WORKSPACES[key], found  # the old memory is given back before the new is asked for
            room = torch.empty(size, dtype=dtype, device=device)
            found = _WORKSPACES[key] = _Workspace(room, _holders(room))
        return found.room[:size].view(shape)


def held_bytes() -> int:
    """What all workspaces take."""
    return sum(found.room.numel() * found.room.element_size() for found in _WORKSPACES.values())


def release() -> None:
    """Give the memory back; what is still held by others stays theirs."""
    with _LOCK:
        _WORKSPACES.clear()


def _stream(device: torch.device) -> int:
    """Work of one stream is done in its order; what another stream reads must not be overwritten by this one."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _holders(tensor: Tensor) -> int:
    """Tensors that share this memory, views and what autograd keeps among them."""
    assert _count is not None
    holders: int = _count(tensor.untyped_storage()._cdata)
    return holders
