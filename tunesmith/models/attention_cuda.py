"""Attention over stretches of a row on a GPU: torch's own kernels for rows of unequal stretches, all of one depth in one call.

Candidates stand in order of preference in one table (one, today); the first that gives what the definition gives on this card, for
this dtype and shape of heads, values and gradients, is taken. Functions have the shapes of `models/attention_cpu.py`.

Shapes: T tokens of the row, H query heads, K key/value heads, E head size, Q queries and S keys of all stretches of a call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tunesmith.models.forest import Forest

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where the stretches of a call begin in its queries and in its keys, [stretches + 1] int32, and the longest of each."""

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int


def offsets_of(queries: list[int], keys: list[int], device: torch.device) -> Offsets:
    """From offsets as Python has them: copied to the device once a row."""
    longest = [max(end - begin for begin, end in pairwise(offsets)) for offsets in (queries, keys)]
    on_device = [torch.tensor(offsets, dtype=torch.int32, device=device) for offsets in (queries, keys)]
    return Offsets(on_device[0], on_device[1], longest[0], longest[1])


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two functions of [stretch, heads, size] tensors: (q, k, v, offsets, causal, scale, window) to (output, lse [H, Q]), and
    (gradient, q, k, v, output, lse, offsets, causal, scale, window) to the gradients of q, k and v."""

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    windows: bool
    least_capability: tuple[int, int]
    warp: int  # head sizes are multiples of so many


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, at: Offsets, is_causal: bool, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    out, lse_HQ, *_ = _aten._flash_attention_forward(
        q, k, v, at.queries, at.keys, at.longest_queries, at.longest_keys, 0.0, is_causal, False, scale=scale, **_reach(window)
    )
    return out, lse_HQ


def _flash_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HQ: Tensor, at: Offsets, is_causal: bool, scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a dropout that there is not
    found: tuple[Tensor, Tensor, Tensor] = _aten._flash_attention_backward(
        gradient, q, k, v, out, lse_HQ.contiguous(), at.queries, at.keys, at.longest_queries, at.longest_keys, 0.0, is_causal,
        unused, unused, scale=scale, **_reach(window),
    )  # fmt: skip
    return found


def _reach(window: int | None) -> dict[str, int]:
    """A window of w tokens sees w - 1 before its own and none behind."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


@contextmanager
def repeatable() -> Iterator[None]:
    """Backward kernels sum in one order, so that a resumed run repeats an undisturbed one to the bit; one that cannot raises.

    The public switch would also change the compiler's configuration, which compiled blocks are keyed by.
    """
    mode, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch._C._get_deterministic_fill_uninitialized_memory()
    torch._C._set_deterministic_algorithms(True, warn_only=False)
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # the kernels write all that they allocate
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
        torch._C._set_deterministic_fill_uninitialized_memory(filled)


# Not cuDNN's, fast as it is on newer cards: behind torch's operator for unequal stretches its graph is built anew at every call, many
# milliseconds of the host for each layer, and its backward pass cannot be told to sum in one order.
CANDIDATES = (Candidate("flash", _flash_forward, _flash_backward, True, (8, 0), 8),)


def causal(
    candidate: Candidate, q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Each segment over itself, in one call: output [T, H, E] and lse [H, T]."""
    return candidate.forward(*_by_token(q_HTE, k_KTE, v_KTE), _segments(forest, q_HTE.device), True, scale, window)


def causal_backward(
    candidate: Candidate, gradient_THE: Tensor, q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, out_THE: Tensor, lse_HT: Tensor,
    forest: Forest, scale: float, window: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of queries, keys and values, [H, T, E] and [K, T, E]."""
    given, at = _by_token(q_HTE, k_KTE, v_KTE), _segments(forest, q_HTE.device)
    with repeatable():
        found = candidate.backward(gradient_THE.contiguous(), *given, out_THE.contiguous(), lse_HT, at, True, scale, window)
    return tuple(part.transpose(0, 1) for part in found)


def full(candidate: Candidate, q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, at: Offsets, scale: float) -> tuple[Tensor, Tensor]:
    """The queries of each stretch over all of its keys: output [Q, H, E] and lse [H, Q]."""
    return candidate.forward(*_by_token(q_HQE, k_KSE, v_KSE), at, False, scale, None)


def full_backward(
    candidate: Candidate, gradient_QHE: Tensor, q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, out_QHE: Tensor, lse_HQ: Tensor,
    at: Offsets, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of queries [H, Q, E], keys and values [K, S, E]."""
    given = _by_token(q_HQE, k_KSE, v_KSE)
    with repeatable():
        found = candidate.backward(gradient_QHE.contiguous(), *given, out_QHE.contiguous(), lse_HQ, at, False, scale, None)
    return tuple(part.transpose(0, 1) for part in found)


def _by_token(*parts_HTE: Tensor) -> list[Tensor]:
    return [part.transpose(0, 1).contiguous() for part in parts_HTE]


def _segments(forest: Forest, device: torch.device) -> Offsets:
    def make() -> Offsets:
        starts = [0, *(end for begin, end in forest.segments if begin < end)]
        return offsets_of(starts, starts, device)

    return forest.once(("segments", device), make)
