"""Attention over stretches of a row on a processor: torch's flash operator for each, and one plain product for many short ones.

The operator costs as much for 16 tokens as for 60, and its backward twice that: short segments of about one length are computed
together, by the definition, in fp32. Forward functions give the logarithm of the softmax's denominator (lse) beside the output;
backward functions take the output and lse of the WHOLE softmax, of which theirs may be a part (`models/merged_attention.py`).

Shapes: T tokens of the row, H query heads, K key/value heads of G = H/K query heads each, E head size, Q queries and S keys of a
stretch, N short segments of at most L tokens, M tokens of all short segments.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.forest import Forest

SHORT = 64  # tokens; beyond, the operator's own tiles are full
STEP = 16  # lengths of segments computed together differ by less than this
FEWEST = 2  # segments of about one length, below which the operator is called for each
_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Together:
    """Short segments of about one length, filled up to the longest: where their rows stand in [T·H, E] and [T·K, E]."""

    rows_q: Tensor  # [K·N·G·L]
    rows_k: Tensor  # [K·N·L]
    filling: Tensor  # [K·N, G·L] bool: no token of the row; such rows are never read
    length: int


@dataclass(frozen=True, slots=True)
class Division:
    """Which segments the operator takes one by one, which are computed together, and how their rows come back in order."""

    alone: list[tuple[int, int]]
    together: list[Together]
    tokens_M: Tensor  # in the row
    back_q: Tensor  # [M·H] rows of all of `together`, one behind the other
    back_k: Tensor  # [M·K]


def causal(q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest, scale: float, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Each segment over itself: output [T, H, E] and lse [H, T]."""
    assert window is None, "the operator knows no window"
    division = _division(forest, q_HTE.shape[0], k_KTE.shape[0])
    out_THE = q_HTE.new_empty(q_HTE.shape[1], q_HTE.shape[0], q_HTE.shape[2])
    lse_HT = q_HTE.new_empty(q_HTE.shape[:2], dtype=torch.float64 if q_HTE.dtype == torch.float64 else torch.float32)
    for begin, end in division.alone:
        at = slice(begin, end)
        out, lse_HT[:, at] = _flash(q_HTE[:, at], k_KTE[:, at], v_KTE[:, at], True, scale)
        out_THE[at].unflatten(1, out.shape[:2]).copy_(out.permute(2, 0, 1, 3))
    if division.together:
        q, k, v = (_rows(part) for part in (q_HTE, k_KTE, v_KTE))
        outs, lses = zip(*[_softmax(q, k, v, together, scale) for together in division.together], strict=True)
        out_MHE = torch.cat(outs).index_select(0, division.back_q).view(-1, *out_THE.shape[1:])
        lse_MH = torch.cat(lses).index_select(0, division.back_q).view(-1, out_THE.shape[1])
        out_THE.index_copy_(0, division.tokens_M, out_MHE.to(out_THE.dtype))
        lse_HT.t().index_copy_(0, division.tokens_M, lse_MH)
    return out_THE, lse_HT


def causal_backward(
    gradient_THE: Tensor, q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, out_THE: Tensor, lse_HT: Tensor, forest: Forest, scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys and values, [H, T, E] and [K, T, E], laid out as [T, H, E] and [T, K, E]."""
    division = _division(forest, q_HTE.shape[0], k_KTE.shape[0])
    dq_THE, dk_TKE, dv_TKE = (
        torch.empty_like(part.transpose(0, 1), memory_format=torch.contiguous_format) for part in (q_HTE, k_KTE, v_KTE)
    )
    for begin, end in division.alone:
        at = slice(begin, end)
        given = (gradient_THE[at], q_HTE[:, at], k_KTE[:, at], v_KTE[:, at], out_THE[at], lse_HT[:, at])
        dq, dk, dv = _flash_backward(*given, True, scale)
        dq_THE[at].unflatten(1, dq.shape[:2]).copy_(dq.permute(2, 0, 1, 3))
        torch.sum(dk.permute(2, 0, 1, 3), 2, out=dk_TKE[at])
        torch.sum(dv.permute(2, 0, 1, 3), 2, out=dv_TKE[at])
    if division.together:
        gradient, q, k, v, out = (_rows(part) for part in (gradient_THE.transpose(0, 1), q_HTE, k_KTE, v_KTE, out_THE.transpose(0, 1)))
        lse = lse_HT.t().reshape(-1)
        found = [_softmax_backward(gradient, q, k, v, out, lse, together, scale) for together in division.together]
        backs = (division.back_q, division.back_k, division.back_k)
        for into, parts, back in zip((dq_THE, dk_TKE, dv_TKE), zip(*found, strict=True), backs, strict=True):
            part = torch.cat(parts).index_select(0, back).view(-1, *into.shape[1:])
            into.index_copy_(0, division.tokens_M, part.to(into.dtype))
    return dq_THE.transpose(0, 1), dk_TKE.transpose(0, 1), dv_TKE.transpose(0, 1)


def full(q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, offsets: Any, scale: float) -> tuple[Tensor, Tensor]:
    """Every query over every key: output [Q, H, E] and lse [H, Q]. One stretch: it needs no offsets."""
    out, lse_HQ = _flash(q_HQE, k_KSE, v_KSE, False, scale)
    return out.permute(2, 0, 1, 3).flatten(1, 2), lse_HQ


def full_backward(
    gradient_QHE: Tensor, q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, out_QHE: Tensor, lse_HQ: Tensor, offsets: Any, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries [H, Q, E], keys and values [K, S, E]."""
    dq, dk, dv = _flash_backward(gradient_QHE, q_HQE, k_KSE, v_KSE, out_QHE, lse_HQ, False, scale)
    return dq.flatten(0, 1), dk.sum(1), dv.sum(1)


def _grouped(q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[K, G, Q, E] queries; keys and values lent to each query head of their group, not repeated."""
    kept, groups = k_KSE.shape[0], q_HQE.shape[0] // k_KSE.shape[0]
    return q_HQE.unflatten(0, (kept, groups)), k_KSE[:, None].expand(-1, groups, -1, -1), v_KSE[:, None].expand(-1, groups, -1, -1)


def _flash(q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [K, G, Q, E] and lse [H, Q]."""
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*_grouped(q_HQE, k_KSE, v_KSE), 0.0, is_causal, scale=scale)
    return out, lse.flatten(0, 1)


def _flash_backward(
    gradient_QHE: Tensor, q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, out_QHE: Tensor, lse_HQ: Tensor, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values of each query head, [K, G, Q or S, E]."""
    q, k, v = _grouped(q_HQE, k_KSE, v_KSE)
    gradient, out = (part.transpose(0, 1).unflatten(0, q.shape[:2]) for part in (gradient_QHE, out_QHE))
    lse = lse_HQ.unflatten(0, q.shape[:2])
    found: tuple[Tensor, Tensor, Tensor] = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient, q, k, v, out, lse, 0.0, is_causal, scale=scale
    )
    return found


def _rows(part_HTE: Tensor) -> Tensor:
    """[T·H, E]: no copy where a class hands its heads over as it computes them."""
    return part_HTE.transpose(0, 1).reshape(-1, part_HTE.shape[2])


def _taken(rows: Tensor, index: Tensor, batch: int) -> Tensor:
    """[K·N, rows of each, E] in fp32 at least."""
    taken = rows.index_select(0, index).view(batch, -1, rows.shape[1])
    return taken if taken.dtype == torch.float64 else taken.float()


def _scores(q: Tensor, k: Tensor, length: int, scale: float) -> Tensor:
    """[K·N, G·L, L]: what stands behind a query, fillings among it, is hidden from it."""
    scores = torch.bmm(q, k.mT).mul_(scale)
    later_LL = torch.ones(length, length, dtype=torch.bool, device=q.device).triu_(1)
    scores.unflatten(1, (-1, length)).masked_fill_(later_LL, float("-inf"))
    return scores


def _softmax(q_rows: Tensor, k_rows: Tensor, v_rows: Tensor, together: Together, scale: float) -> tuple[Tensor, Tensor]:
    """Output rows [K·N·G·L, E] and their lse."""
    batch = together.filling.shape[0]
    q, k, v = _taken(q_rows, together.rows_q, batch), _taken(k_rows, together.rows_k, batch), _taken(v_rows, together.rows_k, batch)
    scores = _scores(q, k, together.length, scale)
    lse = scores.logsumexp(-1)
    return torch.bmm(scores.sub_(lse[..., None]).exp_(), v).flatten(0, 1), lse.flatten()


def _softmax_backward(
    gradient_rows: Tensor,
    q_rows: Tensor,
    k_rows: Tensor,
    v_rows: Tensor,
    out_rows: Tensor,
    lse_rows: Tensor,
    together: Together,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the gradients of queries [K·N·G·L, E], keys and values [K·N·L, E]."""
    batch = together.filling.shape[0]
    gradient, q, out = (_taken(rows, together.rows_q, batch) for rows in (gradient_rows, q_rows, out_rows))
    k, v = (_taken(rows, together.rows_k, batch) for rows in (k_rows, v_rows))
    lse = lse_rows.index_select(0, together.rows_q).view_as(together.filling)
    lse = lse.masked_fill(together.filling, float("inf"))  # a filling's weights become zero, and with them all that it would give
    weights = _scores(q, k, together.length, scale).sub_(lse[..., None]).exp_()
    dv = torch.bmm(weights.mT, gradient)
    dscores = torch.bmm(gradient, v.mT).sub_((gradient * out).sum(-1, keepdim=True)).mul_(weights).mul_(scale)
    return torch.bmm(dscores, k).flatten(0, 1), torch.bmm(dscores.mT, q).flatten(0, 1), dv.flatten(0, 1)


def _division(forest: Forest, heads: int, kept: int) -> Division:
    return forest.once(("division", heads, kept), lambda: _divided(forest, heads, kept))


def _divided(forest: Forest, heads: int, kept: int) -> Division:
    alone, short = [], defaultdict(list)
    for begin, end in forest.segments:
        if end - begin > SHORT:
            alone.append((begin, end))
        elif end > begin:
            short[-(-(end - begin) // STEP)].append((begin, end))
    for key in [key for key, members in short.items() if len(members) < FEWEST]:
        alone += short.pop(key)
    together, tokens, back_q, back_k, at_q, at_k = [], [torch.empty(0, dtype=torch.int64)], [], [], 0, 0
    for members in short.values():
        begins_N, ends_N = torch.tensor(members).unbind(1)
        length = int((ends_N - begins_N).max())
        places_NL = begins_N[:, None] + torch.arange(length)
        filling_NL = places_NL >= ends_N[:, None]
        places_NL = places_NL.minimum(ends_N[:, None] - 1)
        count, groups = len(members), heads // kept
        heads_KG = torch.arange(heads).view(kept, groups)
        rows_q = places_NL[None, :, None, :] * heads + heads_KG[:, None, :, None]  # [K, N, G, L]
        rows_k = places_NL[None] * kept + torch.arange(kept)[:, None, None]  # [K, N, L]
        filling = filling_NL[None, :, None].expand(kept, count, groups, length).reshape(kept * count, -1)
        together.append(Together(rows_q.flatten(), rows_k.flatten(), filling, length))
        # where a token's heads stand in the result: [N, L, H] and [N, L, K], fillings left out
        numbers_q = torch.arange(at_q, at_q + rows_q.numel()).view_as(rows_q).permute(1, 3, 0, 2).flatten(2)
        numbers_k = torch.arange(at_k, at_k + rows_k.numel()).view_as(rows_k).permute(1, 2, 0)
        back_q.append(numbers_q[~filling_NL].flatten())
        back_k.append(numbers_k[~filling_NL].flatten())
        tokens.append(places_NL[~filling_NL])
        at_q, at_k = at_q + rows_q.numel(), at_k + rows_k.numel()
    nothing = [torch.empty(0, dtype=torch.int64)]
    return Division(alone, together, torch.cat(tokens), torch.cat(back_q or nothing), torch.cat(back_k or nothing))
