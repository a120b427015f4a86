"""Attention of a packed row whose documents share what they begin with: computed once, attended to by all.

What a query sees falls into parts: its own segment up to itself, the whole of each segment that its own goes on from, and what
stands in front of the row. Each part is one call of a fused kernel (one full call for all queries that see a segment's keys, one
causal call a segment) and gives an output and the logarithm of its softmax's denominator (lse). They merge exactly:

    lse = log(exp(lse_a) + exp(lse_b))          out = exp(lse_a − lse)·out_a + exp(lse_b − lse)·out_b

A part's backward kernel makes its weights anew as exp(score − lse) and needs sum(gradient·out) beside them. Handed the MERGED
lse and output, it gives the gradients of the whole, so that nothing of the merging has to be kept or differentiated.

Windows count the positions of a document, what it shares among them. A segment whose window does not reach the document's first
token, soft-caps and sinks have no merging kernel: the keys of such a segment's path are gathered and it goes through `chunked`.

Shapes: T tokens of the row, P positions in front, H query heads, K key/value heads, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models import attention_cpu, attention_cuda
from tunesmith.models.chunked_attention import chunked
from tunesmith.models.forest import Forest, Front, forest_of


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of `attention_cpu`, or those of a GPU's candidate."""

    name: str
    causal: Any
    causal_backward: Any
    full: Any
    full_backward: Any
    together: bool = False  # all stretches of one depth are one call
    windows: bool = False  # `causal` takes a window


CPU = Kernels(
    "torch's flash operator", attention_cpu.causal, attention_cpu.causal_backward, attention_cpu.full, attention_cpu.full_backward
)


def attend(
    q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, fronts: Sequence[Front], scale: float, *,
    window: int | None = None, softcap: float | None = None, sinks_H: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Every token sees all in front, all of the segments that its own goes on from, and its own up to itself: [T, H, E].

    `fronts`: keys and values [K, P, E] in front of every root, outermost first. Everything is of one dtype.
    """
    assert forest.tokens == q_HTE.shape[1], "segments fill the row"
    kernels = kernels_for(q_HTE, k_KTE)
    given = (q_HTE, k_KTE, v_KTE)
    before = sum(k_KPE.shape[1] for k_KPE, _ in fronts)
    if kernels is None or softcap is not None or sinks_H is not None:
        fused, special = list[int](), _filled(forest)
    else:
        fused, special = _split(forest, before, window)
        if not special:
            return _merged(kernels, *given, forest, fronts, scale)
        if kernels.windows and not (before or forest.parents):
            return _merged(kernels, *given, forest, fronts, scale, window)
    pieces: dict[int, Tensor] = {}
    if kernels is not None and fused:  # a forest again: whoever sees all of its path has ancestors that do
        part = forest.once(("fused", window, before), lambda: forest.part(fused))
        q, k, v = (torch.cat([whole[:, slice(*forest.segments[s])] for s in fused], dim=1) for whole in given)
        out_THE = _merged(kernels, q, k, v, part, fronts, scale)
        pieces |= {s: out_THE[slice(*at)] for s, at in zip(fused, part.segments, strict=True)}
    for segment in special:
        pieces[segment] = _by_definition(*given, forest, segment, fronts, scale, window, softcap, sinks_H)
    return torch.cat([pieces[segment] for segment in sorted(pieces)])


def kernels_for(q_HTE: Tensor, k_KTE: Tensor) -> Kernels | None:
    """Kernels that give an lse and take one back, or None where this device has none for such tensors."""
    if q_HTE.device.type == "cpu":
        return CPU
    return chosen(q_HTE.device, q_HTE.dtype, q_HTE.shape[0], k_KTE.shape[0], q_HTE.shape[-1])


@cache
def chosen(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> Kernels | None:
    """The first of a card's candidates that gives what the definition gives: asked once a shape of heads."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    for candidate in attention_cuda.CANDIDATES:
        if size % candidate.warp == 0 and torch.cuda.get_device_capability(device) >= candidate.least_capability:
            kernels = _of_candidate(candidate)
            if agrees(kernels, device, dtype, heads, kept, size):
                return kernels
    return None


def _of_candidate(candidate: attention_cuda.Candidate) -> Kernels:
    functions: tuple[Any, ...] = (attention_cuda.causal, attention_cuda.causal_backward, attention_cuda.full, attention_cuda.full_backward)
    causal, causal_backward, full, full_backward = (partial(function, candidate) for function in functions)
    return Kernels(candidate.name, causal, causal_backward, full, full_backward, together=True, windows=candidate.windows)


def note(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> str:
    """A sentence for the user where the first choice is not what computes attention here, or an empty text."""
    if device.type != "cuda":
        return ""
    what = f"attention of {heads} heads of size {size} in {str(dtype).removeprefix('torch.')}"
    kernels = chosen(device, dtype, heads, kept, size)
    if kernels is None:
        return f"no kernel of this GPU for packed rows computes {what} as the definition has it: documents are computed one by one"
    able = [c.name for c in attention_cuda.CANDIDATES if torch.cuda.get_device_capability(device) >= c.least_capability]
    return "" if kernels.name == able[0] else f"{able[0]} does not compute {what} as the definition has it: {kernels.name} is used"


def agrees(kernels: Kernels, device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> bool:
    """Whether kernels give the definition's values and gradients, on a forest behind a front, and on documents within a window."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, tokens: int) -> Tensor:
        return torch.randn(rows, tokens, size, generator=generator).to(device, dtype).requires_grad_()

    q, k, v, *front = [drawn(rows, tokens) for rows, tokens in ((heads, 155), (kept, 155), (kept, 155), (kept, 5), (kept, 5))]
    shared, alone, scale = forest_of((40, 9, 70, 1, 30, 5), (-1, 0, 1, 0, -1, 4)), forest_of((40, 9, 106)), size**-0.5
    cases: list[tuple[Forest, int | None, list[Tensor]]] = [(shared, None, front), (alone, None, [])]
    cases += [(alone, 20, [])] if kernels.windows else []
    for forest, window, front in cases:
        leaves = [q, k, v, *front]
        with torch.enable_grad():
            try:
                ours = _merged(kernels, q, k, v, forest, [tuple(front)] if front else [], scale, window)
                direction = torch.randn(ours.shape, generator=generator).to(ours)
                found = [ours, *torch.autograd.grad(ours, leaves, direction)]
            except (RuntimeError, NotImplementedError, TypeError):
                return False
            exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
            fronts = [tuple(exact[3:])] if front else []
            pieces = [_by_definition(exact[0], exact[1], exact[2], forest, s, fronts, scale, window) for s in _filled(forest)]
            theirs = torch.cat(pieces)
            wanted = [theirs, *torch.autograd.grad(theirs, exact, direction.double())]
        if not all((one.double() - other).norm() <= 0.02 * other.norm() for one, other in zip(found, wanted, strict=True)):
            return False
    return True


def _filled(forest: Forest) -> list[int]:
    return [segment for segment, (begin, end) in enumerate(forest.segments) if begin < end]


def _split(forest: Forest, before: int, window: int | None) -> tuple[list[int], list[int]]:
    """Segments whose every token sees the whole of its path, and those that a window cuts."""
    filled = _filled(forest)
    if window is None:
        return filled, []

    def seen(segment: int) -> bool:
        begin, end = forest.segments[segment]
        return before + forest.above[segment] + end - begin <= window

    return [s for s in filled if seen(s)], [s for s in filled if not seen(s)]


def _by_definition(
    q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, segment: int, fronts: Sequence[Any], scale: float,
    window: int | None = None, softcap: float | None = None, sinks_H: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """One segment over the gathered keys of its path: [L, H, E]."""
    segments = forest.segments
    path = [slice(*segments[s]) for s in (*forest.path(segment), segment)]
    k_KSE = torch.cat([*(front[0] for front in fronts), *(k_KTE[:, at] for at in path)], dim=1)
    v_KSE = torch.cat([*(front[1] for front in fronts), *(v_KTE[:, at] for at in path)], dim=1)
    q_HLE = q_HTE[:, path[-1]]
    reaches = window if window is not None and window < k_KSE.shape[1] else None
    if k_KSE.shape[1] == q_HLE.shape[1] and reaches is None and softcap is None and sinks_H is None:
        grouped = k_KSE.shape[0] != q_HLE.shape[0]
        out = F.scaled_dot_product_attention(q_HLE[None], k_KSE[None], v_KSE[None], is_causal=True, scale=scale, enable_gqa=grouped)
    else:
        out = chunked(q_HLE[None], k_KSE[None], v_KSE[None], scale, reaches, softcap, sinks_H)
    return out[0].transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Level:
    """Some segments' keys and the queries that see them, one full call: slices of the row, or indices where they are several."""

    queries: slice | Tensor
    keys: slice | Tensor
    offsets: Any


def _levels(kernels: Kernels, forest: Forest, device: torch.device) -> list[Level]:
    return forest.once(("levels", kernels.together, device), lambda: _made_levels(kernels.together, forest, device))


def _made_levels(together: bool, forest: Forest, device: torch.device) -> list[Level]:
    if not together:
        return [Level(slice(*crossing.queries), slice(*crossing.keys), None) for crossing in forest.crossings]
    levels = []
    for depth in sorted({crossing.depth for crossing in forest.crossings}):
        alike = [crossing for crossing in forest.crossings if crossing.depth == depth]
        places, starts = [], []
        for stretches in ([crossing.queries for crossing in alike], [crossing.keys for crossing in alike]):
            places.append(slice(*stretches[0]) if len(alike) == 1 else torch.cat([torch.arange(*s) for s in stretches]).to(device))
            starts.append(list(forest_of(end - begin for begin, end in stretches).starts))
        levels.append(Level(places[0], places[1], attention_cuda.offsets_of(starts[0], starts[1], device)))
    return levels


def _in_front(kernels: Kernels, forest: Forest, before: int, device: torch.device) -> Any:
    """Offsets of the whole row over what stands in front of it."""
    if not kernels.together:
        return None
    return forest.once(("front", before, device), lambda: attention_cuda.offsets_of([0, forest.tokens], [0, before], device))


def _merged(
    kernels: Kernels, q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, fronts: Sequence[Any], scale: float,
    window: int | None = None,
) -> Tensor:  # fmt: skip
    flat = [part for front in fronts for part in front]
    merged: Tensor = _Merged.apply(q_HTE, k_KTE, v_KTE, kernels, forest, scale, window, *flat)
    return merged


def _taken(part: Tensor, at: slice | Tensor, dim: int) -> Tensor:
    if isinstance(at, slice):
        return part[at] if dim == 0 else part[:, at]
    return part.index_select(dim, at)


def _merge(out_THE: Tensor, lse_HT: Tensor, part_QHE: Tensor, lse_HQ: Tensor, at: slice | Tensor) -> None:
    """A part's output and lse into those of the whole, where its queries stand. The two weights are one in sum, so the merged
    output is a step from the one towards the other."""
    old_HQ, old_QHE = _taken(lse_HT, at, 1), _taken(out_THE, at, 0)
    new_HQ = torch.logaddexp(old_HQ, lse_HQ)
    old_QHE.lerp_(part_QHE.to(out_THE.dtype), (lse_HQ - new_HQ).exp_().t().unsqueeze(-1))
    if isinstance(at, slice):  # what was taken is a view, already written
        old_HQ.copy_(new_HQ)
    else:
        lse_HT.index_copy_(1, at, new_HQ)
        out_THE.index_copy_(0, at, old_QHE)


def _add(whole_HTE: Tensor, part_HQE: Tensor, at: slice | Tensor) -> None:
    if isinstance(at, slice):
        whole_HTE[:, at].add_(part_HQE)
    else:
        whole_HTE.index_add_(1, at, part_HQE.contiguous())


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, kernels: Kernels, forest: Forest, scale: float, window: int | None, *fronts: Tensor
    ) -> Tensor:
        ctx.kernels, ctx.forest, ctx.scale, ctx.window = kernels, forest, scale, window
        levels = _levels(kernels, forest, q.device)
        out_THE, lse_HT = kernels.causal(q, k, v, forest, scale, window)
        if levels or fronts:
            out_THE, lse_HT = out_THE.to(lse_HT.dtype), lse_HT.contiguous()
        whole = slice(0, forest.tokens)
        for keys_KPE, values_KPE in zip(fronts[::2], fronts[1::2], strict=True):
            offsets = _in_front(kernels, forest, keys_KPE.shape[1], q.device)
            part_THE, part_HT = kernels.full(q, keys_KPE, values_KPE, offsets, scale)
            _merge(out_THE, lse_HT, part_THE, part_HT, whole)
        for level in levels:
            keys, values = _taken(k, level.keys, 1), _taken(v, level.keys, 1)
            part_QHE, part_HQ = kernels.full(_taken(q, level.queries, 1), keys, values, level.offsets, scale)
            _merge(out_THE, lse_HT, part_QHE, part_HQ, level.queries)
        out_THE = out_THE.to(q.dtype)
        ctx.save_for_backward(q, k, v, out_THE, lse_HT, *fronts)
        return out_THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_THE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out_THE, lse_HT, *fronts = ctx.saved_tensors
        kernels, forest, scale = ctx.kernels, ctx.forest, ctx.scale
        dq = dk = dv = None
        if any(ctx.needs_input_grad[:3]):  # the first layer's queries, keys and values may come from frozen weights alone
            dq, dk, dv = kernels.causal_backward(gradient_THE, q, k, v, out_THE, lse_HT, forest, scale, ctx.window)
            for level in _levels(kernels, forest, q.device):
                gradient, out = _taken(gradient_THE, level.queries, 0), _taken(out_THE, level.queries, 0)
                taken = (_taken(q, level.queries, 1), _taken(k, level.keys, 1), _taken(v, level.keys, 1))
                parts = kernels.full_backward(gradient, *taken, out, _taken(lse_HT, level.queries, 1), level.offsets, scale)
                for whole, part, at in zip((dq, dk, dv), parts, (level.queries, level.keys, level.keys), strict=True):
                    _add(whole, part, at)
        dfronts: list[Tensor | None] = []
        for i in range(0, len(fronts), 2):
            if not (ctx.needs_input_grad[0] or any(ctx.needs_input_grad[7 + i : 9 + i])):
                dfronts += [None, None]
                continue
            offsets = _in_front(kernels, forest, fronts[i].shape[1], q.device)
            dq_front, *both = kernels.full_backward(gradient_THE, q, fronts[i], fronts[i + 1], out_THE, lse_HT, offsets, scale)
            dq = dq_front if dq is None else dq.add_(dq_front)
            dfronts += both
        return dq, dk, dv, None, None, None, None, *dfronts
