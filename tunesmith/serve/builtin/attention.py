"""Attention of a serving step: one packed row of tokens that belong to many answers, over keys and values that lie in a cache.

    tokens of the row      d d d d d │ p p p p p p p │ d │ p p p          d: the next token of an answer    p: a stretch of a prompt
                           └───┬───┘   └─────┬─────┘
      all of a slab in one batched call      one causal call behind what is cached of that answer

Registered with `transformers` as "tunesmith_serving"; classes hand the step down as the keyword `serving`. New keys and values are
written to the cache first. Heads that share keys and values are computed as rows of one query, so that nothing is expanded.

Windows, soft-caps and sinks are those of `models/attention.py`; what it refuses is refused here. A position is the number of a
key's place in its row, a prefix's first, so windows count what stands in front as a class does whose cache holds it.

Shapes: T tokens of the row, H query heads, K key/value heads of G = H/K query heads each, E head size, R rows of a slab in use, N
answers of a slab that have a next token, C capacity, L filled positions at most, S keys that a stretch sees, Q its queries.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from tunesmith.models.attention import UnknownArgument, refuse_unknown
from tunesmith.models.chunked_attention import chunked
from tunesmith.serve.builtin.cache import Room, Slab

NAME = "tunesmith_serving"


@dataclass(frozen=True, slots=True)
class Singles:
    """The next tokens of answers in one slab."""

    slab: Slab
    longest: int  # positions that the longest of them fills, its next token among them
    tokens_N: Tensor  # in the packed row
    rows_N: Tensor  # in the slab
    tokens_R: Tensor  # a token for each row; any, where the row has none: its output is not read
    lengths_R: Tensor  # positions filled behind this step; 1 where the row has no token


@dataclass(frozen=True, slots=True)
class Stretch:
    """Several tokens of one answer, one behind the other."""

    room: Room
    start: int  # in the packed row
    end: int

    @property
    def filled(self) -> int:
        return self.room.length + self.end - self.start


@dataclass(eq=False, slots=True)
class Step:
    """What every layer's attention needs to know of a row; a step changes no room's length."""

    layers: Mapping[torch.nn.Module, int]  # attention modules -> layers of the cache
    singles: list[Singles]
    stretches: list[Stretch]
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What layers share: for the first made, then found."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def step_of(layers: Mapping[torch.nn.Module, int], spans: Sequence[tuple[Room, int, int]], device: torch.device) -> Step:
    """`spans`: whose tokens stand from where to where in the row, each room once."""
    alone: dict[int, list[tuple[Room, int]]] = {}
    stretches = []
    for room, start, end in spans:
        if end - start == 1:
            alone.setdefault(id(room.slab), []).append((room, start))
        else:
            stretches.append(Stretch(room, start, end))
    return Step(layers, [_singles(members, device) for members in alone.values()], stretches)


def _singles(members: list[tuple[Room, int]], device: torch.device) -> Singles:
    slab, count = members[0][0].slab, len(members)
    extent = max(room.row for room, _ in members) + 1
    by_row = {room.row: (token, room.length + 1) for room, token in members}
    tokens, lengths = zip(*[by_row.get(row, (members[0][1], 1)) for row in range(extent)], strict=True)
    # one transfer for all of them
    numbers = torch.tensor([*[token for _, token in members], *[room.row for room, _ in members], *tokens, *lengths]).to(device)
    return Singles(slab, max(lengths), *numbers.split([count, count, extent, extent]))


def serving_attention(
    module: torch.nn.Module,
    q_BHTE: Tensor,
    k_BKTE: Tensor,
    v_BKTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    serving: Step | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """[1,H,T,E] queries and [1,K,T,E] new keys and values to [1,T,H,E] outputs.

    Raises UnknownArgument for an argument that would change the result and that we do not serve.
    """
    refuse_unknown(module, attention_mask, dropout, others)
    if serving is None:
        raise UnknownArgument("the class does not hand the step down to its attention")
    if q_BHTE.shape[2] != k_BKTE.shape[2]:
        raise UnknownArgument("keys and queries are not as many")
    layer = serving.layers[module]
    scale = scaling if scaling is not None else q_BHTE.shape[-1] ** -0.5
    q_THE, k_TKE, v_TKE = (part[0].transpose(0, 1) for part in (q_BHTE, k_BKTE, v_BKTE))
    fused = softcap is None and s_aux is None and fuses(q_THE, k_TKE)
    out_THE = q_THE.new_empty(q_THE.shape)
    for singles in serving.singles:
        keys_RKCE, values_RKCE = _written(serving, singles, layer, k_TKE, v_TKE)
        q_RKGE = q_THE.index_select(0, singles.tokens_R).unflatten(1, (k_TKE.shape[1], -1))
        extent, longest = q_RKGE.shape[0], singles.longest
        given = (q_RKGE, keys_RKCE[:extent, :, :longest], values_RKCE[:extent, :, :longest])
        mask_R11L = serving.once((id(singles), sliding_window), partial(_mask, singles, sliding_window, q_THE))
        out_RKGE = by_kernel(*given, mask_R11L, scale) if fused else by_definition(*given, mask_R11L, scale, softcap, s_aux)
        out_THE.index_copy_(0, singles.tokens_N, out_RKGE.flatten(1, 2).index_select(0, singles.rows_N))
    for stretch in serving.stretches:
        at, past, row = slice(stretch.start, stretch.end), stretch.room.length, stretch.room.row
        keys_KCE, values_KCE = stretch.room.slab.keys[layer][row], stretch.room.slab.values[layer][row]
        keys_KCE[:, past : stretch.filled].copy_(k_BKTE[0, :, at])
        values_KCE[:, past : stretch.filled].copy_(v_BKTE[0, :, at])
        seen = slice(0 if sliding_window is None else max(0, past - sliding_window + 1), stretch.filled)
        q_HQE, k_KSE, v_KSE = q_BHTE[0, :, at], keys_KCE[:, seen], values_KCE[:, seen]
        if fused:
            mask_QS = serving.once((id(stretch), sliding_window), partial(_causal, stretch, seen, sliding_window, q_THE))
            out_THE[at] = stretch_by_kernel(q_HQE, k_KSE, v_KSE, mask_QS, scale)
        else:
            out_HQE = chunked(q_HQE[None], k_KSE[None], v_KSE[None], scale, sliding_window, softcap, s_aux)[0]
            out_THE[at] = out_HQE.transpose(0, 1)
    return out_THE[None], None


def _written(step: Step, singles: Singles, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
    """The slab's keys and values of a layer with those of the next tokens in their places."""
    keys_RKCE, values_RKCE = singles.slab.keys[layer], singles.slab.values[layer]
    kept, capacity = keys_RKCE.shape[1:3]

    def places() -> Tensor:  # in the slab as rows of E numbers, of every token and head
        at_N = singles.lengths_R[singles.rows_N] - 1
        heads_K = torch.arange(kept, device=at_N.device)
        return ((singles.rows_N[:, None] * kept + heads_K) * capacity + at_N[:, None]).flatten()

    index = step.once((id(singles), kept), places)
    for whole, new in ((keys_RKCE, k_TKE), (values_RKCE, v_TKE)):
        whole.view(-1, whole.shape[-1]).index_copy_(0, index, new.index_select(0, singles.tokens_N).flatten(0, 1))
    return keys_RKCE, values_RKCE


def _mask(singles: Singles, window: int | None, like: Tensor) -> Tensor:
    """What to add to the scores of each row, [R, 1, 1, L]: 0 where its answer sees, -inf elsewhere."""
    places_L, lengths_R1 = torch.arange(singles.longest, device=like.device), singles.lengths_R[:, None]
    hidden_RL = places_L >= lengths_R1
    if window is not None:
        hidden_RL |= places_L < lengths_R1 - window
    return like.new_zeros(hidden_RL.shape).masked_fill_(hidden_RL, float("-inf"))[:, None, None]


def _causal(stretch: Stretch, seen: slice, window: int | None, like: Tensor) -> Tensor | None:
    """The same for a stretch, [Q, S]; None where plain causality is all."""
    past, filled = stretch.room.length, stretch.filled
    if past == 0 and (window is None or filled <= window):
        return None
    distance_QS = torch.arange(past, filled, device=like.device)[:, None] - torch.arange(seen.start, filled, device=like.device)
    hidden_QS = distance_QS < 0 if window is None else (distance_QS < 0) | (distance_QS >= window)
    return like.new_zeros(hidden_QS.shape).masked_fill_(hidden_QS, float("-inf"))


def by_kernel(q_RKGE: Tensor, k_RKLE: Tensor, v_RKLE: Tensor, mask_R11L: Tensor, scale: float) -> Tensor:
    """One query for each head over one row of keys: [R, K, G, E]."""
    return F.scaled_dot_product_attention(q_RKGE, k_RKLE, v_RKLE, mask_R11L.expand(-1, -1, q_RKGE.shape[2], -1), scale=scale)


def by_definition(
    q_RKGE: Tensor, k_RKLE: Tensor, v_RKLE: Tensor, mask_R11L: Tensor, scale: float, softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same with soft-capped scores and sinks."""
    scores_RKGL = (q_RKGE @ k_RKLE.mT).float() * scale
    if softcap is not None:
        scores_RKGL = torch.tanh(scores_RKGL / softcap) * softcap
    scores_RKGL = scores_RKGL + mask_R11L
    if sinks_H is None:
        weights_RKGL = scores_RKGL.softmax(-1)
    else:
        sinks_RKG1 = sinks_H.float().view(1, *q_RKGE.shape[1:3], 1).expand(q_RKGE.shape[0], -1, -1, -1)
        weights_RKGL = torch.cat([scores_RKGL, sinks_RKG1], dim=-1).softmax(-1)[..., :-1]
    return weights_RKGL.to(v_RKLE.dtype) @ v_RKLE


def stretch_by_kernel(q_HQE: Tensor, k_KSE: Tensor, v_KSE: Tensor, mask_QS: Tensor | None, scale: float) -> Tensor:
    """[Q, H, E]; keys and values are lent to each query head of their group, not repeated."""
    kept, groups = k_KSE.shape[0], q_HQE.shape[0] // k_KSE.shape[0]
    q_KGQE, k_KGSE, v_KGSE = q_HQE.unflatten(0, (kept, groups)), *(part[:, None].expand(-1, groups, -1, -1) for part in (k_KSE, v_KSE))
    mask = None if mask_QS is None else mask_QS.expand(kept, groups, -1, -1)
    out_KGQE = F.scaled_dot_product_attention(q_KGQE, k_KGSE, v_KGSE, mask, is_causal=mask is None, scale=scale)
    return out_KGQE.permute(2, 0, 1, 3).flatten(1, 2)


def fuses(q_THE: Tensor, k_TKE: Tensor) -> bool:
    """Whether torch's kernels give what the definition gives, for heads of this shape on this device."""
    return q_THE.device.type == "cpu" or _agrees(q_THE.device, q_THE.dtype, q_THE.shape[1], k_TKE.shape[1], q_THE.shape[2])


@cache
def _agrees(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> bool:
    """Tried once: rows of unequal lengths, and a stretch behind what is cached. Warns where it is not so."""
    drawn = torch.Generator().manual_seed(0)
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 0.03

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, size, generator=drawn).to(device, dtype)

    try:
        scale, rows, keys, queries = size**-0.5, 5, 77, 23
        q, k, v = some(rows, kept, heads // kept), some(rows, kept, keys), some(rows, kept, keys)
        lengths_R = torch.tensor([1, 77, 30, 64, 8], device=device)
        hidden_RL = torch.arange(keys, device=device) >= lengths_R[:, None]
        mask = torch.zeros(rows, keys, device=device, dtype=dtype).masked_fill_(hidden_RL, float("-inf"))[:, None, None]
        pairs = [(by_kernel(q, k, v, mask, scale), by_definition(q.float(), k.float(), v.float(), mask.float(), scale))]
        q_HQE, k_KSE, v_KSE = some(heads, queries), some(kept, keys), some(kept, keys)
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
        mask_QS = torch.zeros(queries, keys, device=device, dtype=dtype).masked_fill_(distance < 0, float("-inf"))
        exact = chunked(q_HQE[None].float(), k_KSE[None].float(), v_KSE[None].float(), scale)[0].transpose(0, 1)
        pairs.append((stretch_by_kernel(q_HQE, k_KSE, v_KSE, mask_QS, scale), exact))
        exact = chunked(q_HQE[None].float(), k_KSE[None, :, :queries].float(), v_KSE[None, :, :queries].float(), scale)[0].transpose(0, 1)
        pairs.append((stretch_by_kernel(q_HQE, k_KSE[:, :queries], v_KSE[:, :queries], None, scale), exact))
        found = all((one.float() - other).norm() <= tolerance * other.norm() for one, other in pairs)
        why = "other values"
    except (RuntimeError, NotImplementedError, TypeError) as error:
        found, why = False, str(error).strip().partition("\n")[0]
    if not found:
        warnings.warn(
            f"torch's attention kernels are not used for answers on {device}, plain products are: {why}", RuntimeWarning, stacklevel=2
        )
    return found


AttentionInterface.register(NAME, serving_attention)
