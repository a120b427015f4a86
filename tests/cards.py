"""The calls of a card's kernel, one for all stretches of a depth, computed here by the definition."""

from itertools import pairwise

import torch

from tunesmith.models import attention_cuda


def _stretches(at: attention_cuda.Offsets) -> list[tuple[slice, slice]]:
    queries, keys = at.queries.tolist(), at.keys.tolist()
    assert at.longest_queries == max(b - a for a, b in pairwise(queries))
    return [(slice(*queries[i : i + 2]), slice(*keys[i : i + 2])) for i in range(len(queries) - 1)]


def forward(q, k, v, at, is_causal, scale, window):
    outs, lses = [], []
    for here, there in _stretches(at):
        qs, ks = q[here].transpose(0, 1), k[there].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0)
        scores = (qs @ ks.mT).float() * scale
        distance = torch.arange(scores.shape[1])[:, None] - torch.arange(scores.shape[2])
        if is_causal:
            hidden = (distance < 0) | (distance >= (window or 1 << 30))
            scores = scores.masked_fill(hidden, -torch.inf)
        lses.append(scores.logsumexp(-1))
        outs.append(
            (scores.softmax(-1).to(v.dtype) @ v[there].transpose(0, 1).repeat_interleave(q.shape[1] // k.shape[1], 0)).transpose(0, 1)
        )
    return torch.cat(outs), torch.cat(lses, 1)


def backward(gradient, q, k, v, out, lse, at, is_causal, scale, window):
    groups = q.shape[1] // k.shape[1]
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for here, there in _stretches(at):
        qs, g, o = (part[here].transpose(0, 1) for part in (q, gradient, out))
        ks, vs = (part[there].transpose(0, 1).repeat_interleave(groups, 0) for part in (k, v))
        scores = (qs @ ks.mT).float() * scale
        distance = torch.arange(scores.shape[1])[:, None] - torch.arange(scores.shape[2])
        if is_causal:
            scores = scores.masked_fill((distance < 0) | (distance >= (window or 1 << 30)), -torch.inf)
        weights = (scores - lse[:, here, None]).exp()
        ds = weights * ((g @ vs.mT).float() - (g * o).float().sum(-1, keepdim=True)) * scale
        dq[here] = (ds.to(q.dtype) @ ks).transpose(0, 1)
        dk[there] = (ds.mT.to(q.dtype) @ qs).unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
        dv[there] = (weights.mT.to(q.dtype) @ g).unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
    return dq, dk, dv


CARD = attention_cuda.Candidate("a card", forward, backward, True, (0, 0), 1)
