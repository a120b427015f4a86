"""Attention of one document by chunks of queries, for what no fused kernel does: windows, soft-capped scores (Gemma 2), sinks
(gpt-oss). Only the keys that a chunk can see are touched, so that memory is chunk × (window + chunk), not L × L.

Shapes: B rows, H query heads, K key/value heads, L queries, S keys, Q queries of a chunk, E head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.forest import Forest

QUERY_CHUNK = 256  # queries whose scores are made at once


def chunked(
    q_BHLE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last L of S positions over all of them: [B, H, L, E].

    Keys beyond the queries' own (S > L) stand in front of the document. A window counts positions, those in front among them,
    as a class does whose cache holds them.
    """
    length, front = q_BHLE.shape[2], k_BKSE.shape[2] - q_BHLE.shape[2]
    groups = q_BHLE.shape[1] // k_BKSE.shape[1]
    k_BHSE, v_BHSE = k_BKSE.repeat_interleave(groups, dim=1), v_BKSE.repeat_interleave(groups, dim=1)
    pieces = []
    for begin in range(0, length, QUERY_CHUNK):
        end = min(begin + QUERY_CHUNK, length)
        first = 0 if window is None else max(0, front + begin - window + 1)
        scores_BHQS = q_BHLE[:, :, begin:end] @ k_BHSE[:, :, first : front + end].transpose(-1, -2)
        scores_BHQS = (scores_BHQS if scores_BHQS.dtype == torch.float64 else scores_BHQS.float()) * scale
        if softcap is not None:
            scores_BHQS = torch.tanh(scores_BHQS / softcap) * softcap
        positions_Q = torch.arange(front + begin, front + end, device=q_BHLE.device)
        distance_QS = positions_Q[:, None] - torch.arange(first, front + end, device=q_BHLE.device)
        hidden_QS = distance_QS < 0 if window is None else (distance_QS < 0) | (distance_QS >= window)
        scores_BHQS = scores_BHQS.masked_fill(hidden_QS, float("-inf"))
        if sinks_H is not None:
            sinks_BHQ1 = sinks_H.to(scores_BHQS.dtype).view(1, -1, 1, 1).expand(*scores_BHQS.shape[:3], 1)
            weights_BHQS = torch.cat([scores_BHQS, sinks_BHQ1], dim=-1).softmax(-1)[..., :-1]
        else:
            weights_BHQS = scores_BHQS.softmax(-1)
        pieces.append(weights_BHQS.to(v_BHSE.dtype) @ v_BHSE[:, :, first : front + end])
    return torch.cat(pieces, dim=2)


def along_path(
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
