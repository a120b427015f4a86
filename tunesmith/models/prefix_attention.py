"""Attention of packed documents that all stand behind the same keys and values.

        row          │ P P P │ a a a a │ b b │ c c c c c │        one prefix, kept once
        a sees        ─────── ───►
        b sees        ───────           ──►
        c sees        ───────                ─────►

No document gets a copy of the prefix. The queries of the whole row over the prefix are one product, those of each document over
itself another; each gives an output and the logarithm of its softmax's denominator (lse), and these merge exactly:

    lse = log(exp(lse_p) + exp(lse_d))          out = exp(lse_p − lse)·out_p + exp(lse_d − lse)·out_d

A part's backward kernel makes its weights anew as exp(score − lse) and needs sum(gradient·out) beside them. Handed the MERGED
lse and output, it gives the gradients of the whole, so that nothing of the merging has to be kept or differentiated.

Shapes: T tokens of the row, P positions of the prefix, H query heads, K key/value heads of G = H/K query heads each, L tokens of
one document, E head size, D documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tunesmith.models.chunked_attention import chunked

_aten = torch.ops.aten
PREFIX = "prefix"  # the attribute of an attention module under which its prefix stands


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values in front of a layer's documents, as given: what was computed once, or drawn for a proof."""

    layer: int
    keys_KPE: Tensor
    values_KPE: Tensor

    @property
    def prefix_tokens(self) -> int:
        return self.keys_KPE.shape[1]

    def keys_values(self) -> tuple[Tensor, Tensor]:
        return self.keys_KPE, self.values_KPE

    def attach(self, layer: torch.nn.Module) -> None:
        attach(layer, self)

    def detach(self, layer: torch.nn.Module) -> None:
        detach(layer)


def attach(layer: torch.nn.Module, prefix: Any) -> None:
    """Let our attention find `prefix` (something with `keys_values()`) at a layer's attention module, out of its tree."""
    object.__setattr__(layer, PREFIX, prefix)


def detach(layer: torch.nn.Module) -> None:
    vars(layer).pop(PREFIX, None)


def attached(layer: torch.nn.Module) -> Any:
    return vars(layer).get(PREFIX)


def behind_prefix(
    q_HTE: Tensor,
    k_KTE: Tensor,
    v_KTE: Tensor,
    prefix_k_KPE: Tensor,
    prefix_v_KPE: Tensor,
    starts: Sequence[int],
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Causal attention within each document, and of every token over the whole prefix: [H, T, E], laid out as [T, H, E].

    `starts` are D+1 offsets, the first 0, the last T; documents may be empty, the prefix may not. Everything is of one dtype.
    A window counts positions, the prefix's among them: a token at p of its document sees keys from P + p − window + 1 on. Documents
    that a window cuts, soft-caps and sinks have no merging kernel: such a document gets a copy of the prefix.
    """
    assert starts[0] == 0 and starts[-1] == q_HTE.shape[1] and prefix_k_KPE.shape[1] > 0
    plain = softcap is None and sinks_H is None and _fused(q_HTE, k_KTE)
    documents = [(begin, end) for begin, end in pairwise(starts) if begin < end]
    sees_all = window is None or window >= prefix_k_KPE.shape[1] + max(end - begin for begin, end in documents)
    if plain and sees_all:
        return _merged(q_HTE, k_KTE, v_KTE, prefix_k_KPE, prefix_v_KPE, starts, scale)
    pieces = []
    for begin, end in documents:
        own, length = (q_HTE[:, begin:end], k_KTE[:, begin:end], v_KTE[:, begin:end]), end - begin
        reaches = window if window is not None and window < prefix_k_KPE.shape[1] + length else None
        if plain and reaches is None:
            piece = _merged(*own, prefix_k_KPE, prefix_v_KPE, (0, length), scale)
        else:
            piece = _copied(*own, prefix_k_KPE, prefix_v_KPE, scale, reaches, softcap, sinks_H)
        pieces.append(piece.transpose(0, 1))
    return torch.cat(pieces).transpose(0, 1)


def _merged(
    q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, prefix_k_KPE: Tensor, prefix_v_KPE: Tensor, starts: Sequence[int], scale: float
) -> Tensor:
    merged: Tensor = _BehindPrefix.apply(q_HTE, k_KTE, v_KTE, prefix_k_KPE, prefix_v_KPE, tuple(starts), scale)
    return merged


def _copied(
    q_HLE: Tensor,
    k_KLE: Tensor,
    v_KLE: Tensor,
    prefix_k_KPE: Tensor,
    prefix_v_KPE: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """One document by the definition: [H, L, E]."""
    k_KSE, v_KSE = torch.cat([prefix_k_KPE, k_KLE], dim=1), torch.cat([prefix_v_KPE, v_KLE], dim=1)
    return chunked(q_HLE[None], k_KSE[None], v_KSE[None], scale, window, softcap, sinks_H)[0]


class _BehindPrefix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, starts: tuple[int, ...], scale: float
    ) -> Tensor:
        forward, _ = _kernels(q.device.type)
        whole, front = (0, q.shape[1]), (0, prefix_k.shape[1])
        out_p_HTE, lse_p_HT = forward(q, prefix_k, prefix_v, whole, front, False, scale)
        out_d_HTE, lse_d_HT = forward(q, k, v, starts, starts, True, scale)
        lse_HT = torch.logaddexp(lse_p_HT, lse_d_HT)
        weight_HT1 = (lse_p_HT - lse_HT).exp_().unsqueeze(-1)
        # the two weights are one in sum, so the merged output is a step from one part towards the other
        out_HTE = out_d_HTE.to(lse_HT.dtype).lerp_(out_p_HTE.to(lse_HT.dtype), weight_HT1).to(q.dtype)
        ctx.save_for_backward(q, k, v, prefix_k, prefix_v, out_HTE, lse_HT)
        ctx.starts, ctx.scale = starts, scale
        return out_HTE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_HTE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        needs_q, needs_k, needs_v, *needs_prefix = ctx.needs_input_grad[:5]
        _, backward = _kernels(q.device.type)
        whole, front = (0, q.shape[1]), (0, prefix_k.shape[1])
        dq = dk = dv = dprefix_k = dprefix_v = None
        if needs_q or any(needs_prefix):
            dq, dprefix_k, dprefix_v = backward(gradient_HTE, q, prefix_k, prefix_v, out, lse, whole, front, False, ctx.scale)
        if needs_q or needs_k or needs_v:  # the first layer's queries, keys and values come from frozen weights alone
            dq_d, dk, dv = backward(gradient_HTE, q, k, v, out, lse, ctx.starts, ctx.starts, True, ctx.scale)
            dq = dq_d if dq is None else dq.add_(dq_d)
        return dq, dk, dv, dprefix_k, dprefix_v, None, None


def _fused(q_HTE: Tensor, k_KTE: Tensor) -> bool:
    if q_HTE.device.type == "cpu":
        return True
    if q_HTE.device.type != "cuda" or q_HTE.dtype not in (torch.bfloat16, torch.float16) or q_HTE.shape[-1] % 8:
        return False
    return _proved(q_HTE.device, q_HTE.dtype, q_HTE.shape[0], k_KTE.shape[0], q_HTE.shape[-1])


@cache
def _proved(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> bool:
    """Whether this card's kernels give what the definition gives, values and gradients: asked once a shape of heads."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, tokens: int) -> Tensor:
        return torch.randn(rows, tokens, size, generator=generator).to(device, dtype).requires_grad_()

    leaves, starts = [drawn(heads, 70), drawn(kept, 70), drawn(kept, 70), drawn(kept, 5), drawn(kept, 5)], (0, 40, 41, 70)
    with torch.enable_grad():
        try:
            ours = _BehindPrefix.apply(*leaves, starts, size**-0.5)
            direction = torch.randn(ours.shape, generator=generator).to(ours)
            found = [ours, *torch.autograd.grad(ours, leaves, direction)]
        except (RuntimeError, NotImplementedError):
            return False
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        q, k, v, *front = exact
        alone = [_copied(q[:, a:b], k[:, a:b], v[:, a:b], front[0], front[1], size**-0.5) for a, b in pairwise(starts)]
        expected = torch.cat(alone, dim=1)
        wanted = [expected, *torch.autograd.grad(expected, exact, direction.double())]
    return all((one.double() - other).norm() <= 0.02 * other.norm() for one, other in zip(found, wanted, strict=True))


def _kernels(device: str) -> tuple[Any, Any]:
    return (_forward_cpu, _backward_cpu) if device == "cpu" else (_forward_cuda, _backward_cuda)


def _grouped(q_HTE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[K, G, T, E] queries; keys and values lent to each query head of their group, not repeated."""
    kept, groups = k_KSE.shape[0], q_HTE.shape[0] // k_KSE.shape[0]
    return q_HTE.unflatten(0, (kept, groups)), k_KSE[:, None].expand(-1, groups, -1, -1), v_KSE[:, None].expand(-1, groups, -1, -1)


def _forward_cpu(
    q_HTE: Tensor, k_KSE: Tensor, v_KSE: Tensor, starts_q: Sequence[int], starts_k: Sequence[int], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [H, T, E], laid out as [T, H, E], and lse [H, T] of each stretch of queries over its stretch of keys."""
    out_THE, lses = q_HTE.new_empty(q_HTE.shape[1], q_HTE.shape[0], q_HTE.shape[2]), []
    for (begin, end), (first, last) in zip(pairwise(starts_q), pairwise(starts_k), strict=True):
        if begin == end:
            continue
        q, k, v = _grouped(q_HTE[:, begin:end], k_KSE[:, first:last], v_KSE[:, first:last])
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
        out_THE[begin:end].copy_(out.flatten(0, 1).transpose(0, 1))
        lses.append(lse.flatten(0, 1))
    return out_THE.transpose(0, 1), _joined(lses)


def _backward_cpu(
    gradient_HTE: Tensor, q_HTE: Tensor, k_KSE: Tensor, v_KSE: Tensor, out_HTE: Tensor, lse_HT: Tensor,
    starts_q: Sequence[int], starts_k: Sequence[int], causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dqs, dks, dvs = [], [], []
    for (begin, end), (first, last) in zip(pairwise(starts_q), pairwise(starts_k), strict=True):
        if begin == end:
            continue
        q, k, v = _grouped(q_HTE[:, begin:end], k_KSE[:, first:last], v_KSE[:, first:last])
        groups = q.shape[:2]
        gradient, out, lse = (part[:, begin:end].unflatten(0, groups) for part in (gradient_HTE, out_HTE, lse_HT))
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(gradient, q, k, v, out, lse, 0.0, causal, scale=scale)
        dqs.append(dq.flatten(0, 1))
        dks.append(dk.sum(1))
        dvs.append(dv.sum(1))
    return _joined(dqs), _joined(dks), _joined(dvs)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def _offsets(starts: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """Offsets as the kernel takes them, and the longest stretch."""
    return torch.tensor(starts, dtype=torch.int32, device=device), max(end - begin for begin, end in pairwise(starts))


def _forward_cuda(
    q_HTE: Tensor, k_KSE: Tensor, v_KSE: Tensor, starts_q: Sequence[int], starts_k: Sequence[int], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The same in one call: the kernel takes rows of many stretches, and grouped heads."""
    (cum_q, longest_q), (cum_k, longest_k) = _offsets(starts_q, q_HTE.device), _offsets(starts_k, q_HTE.device)
    q, k, v = (part.transpose(0, 1).contiguous() for part in (q_HTE, k_KSE, v_KSE))
    out_THE, lse_HT, *_ = _aten._flash_attention_forward(q, k, v, cum_q, cum_k, longest_q, longest_k, 0.0, causal, False, scale=scale)
    return out_THE.transpose(0, 1), lse_HT


def _backward_cuda(
    gradient_HTE: Tensor, q_HTE: Tensor, k_KSE: Tensor, v_KSE: Tensor, out_HTE: Tensor, lse_HT: Tensor,
    starts_q: Sequence[int], starts_k: Sequence[int], causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (cum_q, longest_q), (cum_k, longest_k) = _offsets(starts_q, q_HTE.device), _offsets(starts_k, q_HTE.device)
    gradient, q, k, v, out = (part.transpose(0, 1).contiguous() for part in (gradient_HTE, q_HTE, k_KSE, v_KSE, out_HTE))
    unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of a dropout that there is not
    dq, dk, dv = _aten._flash_attention_backward(
        gradient, q, k, v, out, lse_HT.contiguous(), cum_q, cum_k, longest_q, longest_k, 0.0, causal, unused, unused, scale=scale
    )
    return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)
