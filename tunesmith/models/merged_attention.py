"""Attention over parts, merged: what is computed once for all queries that see it, and what each segment has of its own.

What a query sees falls into parts: its own segment up to itself, the whole of each segment that its own goes on from, and what
stands in front of the row. Each part is one call of a fused kernel (one full call for all queries that see a segment's keys, one
causal call a segment) and gives an output and the logarithm of its softmax's denominator (lse). They merge exactly:

    lse = log(exp(lse_a) + exp(lse_b))          out = exp(lse_a − lse)·out_a + exp(lse_b − lse)·out_b

A part's backward kernel makes its weights anew as exp(score − lse) and needs sum(gradient·out) beside them. Handed the MERGED
lse and output, it gives the gradients of the whole, so that nothing of the merging has to be kept or differentiated.

Shapes: T tokens of the row, P positions in front, H query heads, K key/value heads, E head size, Q queries of a part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models import attention_cuda
from tunesmith.models.forest import Forest, forest_of


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


def merged(
    kernels: Kernels, q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, fronts: Sequence[Any], scale: float,
    window: int | None = None,
) -> Tensor:  # fmt: skip
    """[T, H, E]: `fronts` and whole segments by full calls, each segment over itself by causal ones. A window is the causal ones'
    alone: it is for rows without fronts in which nothing is shared."""
    flat = [part for front in fronts for part in front]
    found: Tensor = _Merged.apply(q_HTE, k_KTE, v_KTE, kernels, forest, scale, window, *flat)
    return found


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
