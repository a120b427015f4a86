"""Attention of a packed row whose documents share what they begin with: computed once, attended to by all.

Windows count the positions of a document, what it shares among them. A segment whose window does not reach the document's first
token, soft-caps and sinks have no kernel whose parts merge: the keys of such a segment's path are gathered.

Shapes: T tokens of the row, P positions in front, H query heads, K key/value heads, E head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith.models.attention_kernels import kernels_for
from tunesmith.models.chunked_attention import along_path
from tunesmith.models.forest import Forest, Front
from tunesmith.models.merged_attention import merged


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
        fused, special = list[int](), forest.filled
    else:
        fused, special = _split(forest, before, window)
        if not special:
            return merged(kernels, *given, forest, fronts, scale)
        if kernels.windows and not (before or forest.parents):
            return merged(kernels, *given, forest, fronts, scale, window)
    pieces: dict[int, Tensor] = {}
    if kernels is not None and fused:  # a forest again: whoever sees all of its path has ancestors that do
        part = forest.once(("fused", window, before), lambda: forest.part(fused))
        q, k, v = (torch.cat([whole[:, slice(*forest.segments[s])] for s in fused], dim=1) for whole in given)
        out_THE = merged(kernels, q, k, v, part, fronts, scale)
        pieces |= {s: out_THE[slice(*at)] for s, at in zip(fused, part.segments, strict=True)}
    for segment in special:
        pieces[segment] = along_path(*given, forest, segment, fronts, scale, window, softcap, sinks_H)
    return torch.cat([pieces[segment] for segment in sorted(pieces)])


def _split(forest: Forest, before: int, window: int | None) -> tuple[list[int], list[int]]:
    """Segments whose every token sees the whole of its path, and those that a window cuts."""
    filled = forest.filled
    if window is None:
        return filled, []

    def seen(segment: int) -> bool:
        begin, end = forest.segments[segment]
        return before + forest.above[segment] + end - begin <= window

    return [s for s in filled if seen(s)], [s for s in filled if not seen(s)]
