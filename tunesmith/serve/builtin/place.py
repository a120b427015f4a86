"""What stands at one path of a model for all adapters that have something there.

The layer is computed on the whole row once, and each adapter's module changes its own stretch of it: as a correction (`changed`) or with
a stretch of the inputs, in the layer's place (`instead`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.models import slots
from tunesmith.serve.builtin.low_rank import Group, Share

Span = tuple[int, int, str]  # (first token, behind the last one, adapter; "" is the base)


@dataclass(eq=False)
class Row:
    """What the spans of a row mean."""

    tokens: int
    spans: tuple[Span, ...]
    share: Share
    version: int  # of the stacks
    parts: dict[str, list[tuple[int, int, "Stand"]]] = field(default_factory=dict)  # by path, made when first asked for


@dataclass(frozen=True, slots=True)
class Stand:
    module: Any
    source: "Place"  # whose input the module reads


class Place:
    """What stands at one path for all adapters that have something there."""

    def __init__(self, path: str, row: Callable[[], Row | None], group: tuple[Group, int] | None):
        self.path, self.row = path, row
        self.group: Group | None
        self.number: int
        self.group, self.number = group if group is not None else (None, 0)
        self.stands: dict[str, Stand] = {}  # by adapter
        self.low_rank: set[str] = set()  # adapters that have factors here
        self.listeners: set[str] = set()  # adapters that read this layer's input elsewhere
        self.heard: Tensor | None = None
        self.vocabulary: int | None = None  # rows of the embedding, where this is its place: ids beyond are placeholders

    @property
    def is_free(self) -> bool:
        return not (self.stands or self.low_rank or self.listeners)

    def trained(self) -> list[Tensor]:
        """Nothing is trained while a server runs."""
        return []

    def __call__(self, layer: Any, *inputs: Any, **named: Any) -> Any:
        """In place of the layer's forward."""
        row = self.row()
        if row is None:
            return slots.own_forward(layer, *inputs, **named)
        x: Tensor = inputs[0] if inputs else next(iter(named.values()))
        if self.listeners:
            self.heard = x
        stands = self._of(row)
        if stands and all(hasattr(stand.module, "instead") for _, _, stand in stands) and _length(stands) == row.tokens:
            own_parts = [self._instead(layer, stand, start, end, row, inputs, named) for start, end, stand in stands]
            return _joined(own_parts, _axis(x, row.tokens))
        if self.group is not None and not self.group.work(row.share).is_idle:
            output: Any = self.group.output(self.number, x, row.share)
        elif self.vocabulary is not None:
            output = slots.own_forward(layer, x.clamp(max=self.vocabulary - 1))
        else:
            output = slots.own_forward(layer, *inputs, **named)
        for start, end, stand in stands:
            if hasattr(stand.module, "instead"):
                _write(output, self._instead(layer, stand, start, end, row, inputs, named), start, end, row.tokens)
                continue
            read = x if stand.source is self else stand.source.heard
            assert read is not None, f"{stand.source.path} was not computed before {self.path}"
            first = output[0] if isinstance(output, tuple) else output
            own = _cut(first, start, end, row.tokens)
            changed = stand.module.changed(layer, _cut(read, start, end, row.tokens), own)
            if changed is not own:
                own.copy_(changed)
        return output

    def _of(self, row: Row) -> list[tuple[int, int, Stand]]:
        if (found := row.parts.get(self.path)) is None:
            found = row.parts[self.path] = [(start, end, self.stands[name]) for start, end, name in row.spans if name in self.stands]
        return found

    def _instead(self, layer: Any, stand: Stand, start: int, end: int, row: Row, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        cut = [_cut(value, start, end, row.tokens) for value in inputs]
        return stand.module.instead(layer, *cut, **{key: _cut(value, start, end, row.tokens) for key, value in named.items()})


def _length(stands: Sequence[tuple[int, int, Any]]) -> int:
    return sum(end - start for start, end, _ in stands)


def _axis(tensor: Tensor, tokens: int) -> int | None:
    """Along which a tensor holds the row's tokens: the outermost in memory of those that are as long, since heads and channels are
    made within a token. None where it holds none."""
    found = [axis for axis in range(tensor.ndim) if tensor.shape[axis] == tokens]
    return max(found, key=tensor.stride, default=None)


def _cut(value: Any, start: int, end: int, tokens: int) -> Any:
    """A stretch of what an input holds of the row, as a view; what holds nothing of it as it is."""
    if not isinstance(value, Tensor) or end - start == tokens:
        return value
    axis = _axis(value, tokens)
    return value if axis is None else value.narrow(axis, start, end - start)


def _write(whole: Any, part: Any, start: int, end: int, tokens: int) -> None:
    """Put a stretch's output into a row's."""
    if isinstance(whole, tuple):
        for each, its in zip(whole, part, strict=True):
            _write(each, its, start, end, tokens)
    elif isinstance(whole, Tensor):
        _cut(whole, start, end, tokens).copy_(part)


def _joined(parts: Sequence[Any], axis: int | None) -> Any:
    """Outputs of stretches that fill a row, as the row's; they hold tokens where the input does."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(_joined(each, axis) for each in zip(*parts, strict=True))
    return torch.cat(list(parts), dim=axis or 0)
