"""Rows in which each stretch of tokens goes by an adapter of its own: many adapters, of every method, on one base.

    row    │ a a a │ b │ base │ c c │           spans [(0, 3, "a"), (3, 4, "b"), (4, 5, ""), (5, 7, "c")]

At every path where some adapter stands there is one place for all of them. It computes the layer on the whole row, once, and each
adapter's module changes its own stretch. What modules say of themselves:

    factors(layer)                 a low-rank update: many of them in two products (`stack.py`)
    changed(layer, x, y)           another output where x is the input and y the layer's own: bottlenecks, trained rows, virtual tokens
    instead(layer, *inputs)        what takes the layer's place: trained copies
    keys_values()                  nothing at a layer's output: whoever keeps keys and values begins with these

Where no adapter has a stretch the layer computes as if nothing stood there.

One thread computes. Others may prepare adapters meanwhile; placing and removing waits until the row that is being computed is done
(a lock), and takes milliseconds.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import is_linear
from tunesmith.serve.builtin.low_rank import Factors, Group, dtype_of, factors_of
from tunesmith.serve.builtin.place import Place, Row, Span, Stand
from tunesmith.serve.builtin.stack import MOST_ROWS, Stacks

_KEPT_ROWS = 4  # descriptions of rows: a step's tokens and those that go to the head, this step's and the last one's


@dataclass(frozen=True, slots=True)
class Part:
    """A module of an adapter at one place."""

    path: str  # of the layer whose output it changes
    reads: str  # of the layer whose input it reads
    module: Any


@dataclass(frozen=True, slots=True)
class Prepared:
    """An adapter that is ready to be placed, in the dtype that the model computes in."""

    parts: tuple[Part, ...]
    factors: Mapping[int, Factors]  # by group of layers
    prefix: Mapping[int, tuple[Tensor, Tensor]]  # by layer: keys and values [K, P, E]
    first_position: int
    virtual_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that it keeps in memory."""
        found = [tensor for each in self.factors.values() for tensor in each.tensors]
        found += [tensor for pair in self.prefix.values() for tensor in pair]
        return found + [tensor for part in self.parts for tensor in (*part.module.parameters(), *part.module.buffers())]

    @property
    def bytes(self) -> int:
        """What it takes, each tensor once."""
        return sum(storage.nbytes() for storage in {t.data_ptr(): t.untyped_storage() for t in self.tensors}.values())


class Mixed:
    """A model whose rows may go by many adapters. `model` itself is not changed until one is added, but for a place at its head that
    computes what the head does."""

    def __init__(self, model: Any, *, most_rows: int = MOST_ROWS):
        self.model = model
        self.row: Row | None = None  # that is being computed
        self.groups, groups = _groups(model)
        self.stacks = Stacks(groups, most_rows)
        self._adapters: dict[str, Prepared] = {}
        self._places: dict[str, Place] = {}
        self._rows: dict[tuple[Span, ...], Row] = {}
        self._lock = threading.RLock()
        embedding = model.get_input_embeddings()
        self._embedding = next(path for path, module in model.named_modules() if module is embedding)
        self._vocabulary: int = embedding.weight.shape[0]
        head = model.get_output_embeddings()
        self._head = next((path for path, module in model.named_modules() if module is head), None)
        if self._head is not None:  # always there, so that who has read the head once (`models/head.py`) goes by it
            self._place(self._head)

    def add(self, name: str, tuning: Tuning) -> Prepared:
        """Let a name answer by an adapter: `prepare`, then `place`. The tuning's modules are not to be used elsewhere from now on.

        Raises UserError for what cannot share a base.
        """
        prepared = self.prepare(name, tuning)
        self.place(name, prepared)
        return prepared

    @torch.no_grad()
    def prepare(self, name: str, tuning: Tuning) -> Prepared:
        """All that takes time, in any thread; the model's places stay as they are.

        Raises UserError for models of their own (full, freeze), for a task's head, and for values that are not finite: they would
        spread to the other rows of a batch.
        """
        if not tuning.adapter:
            raise UserError(f"{name}: every weight was trained, so it is a model of its own and shares no base; serve it by itself")
        if tuning.head is not None:
            raise UserError(f"{name}: its head says labels ({tuning.head.task}) and writes no text; `tunesmith evaluate` answers with it")
        dtype: torch.dtype = self.model.dtype
        parts: list[Part] = []
        given: dict[int, dict[int, Any]] = {}
        prefix: dict[int, tuple[Tensor, Tensor]] = {}
        for path, module in tuning.adapter.items():
            served: Any = module
            layer = self.model.get_submodule(path)
            if hasattr(served, "factors"):
                group, number = self.groups[path]
                given.setdefault(group.at, {})[number] = served.factors(layer)
            elif hasattr(served, "keys_values"):
                keys_KPE, values_KPE = served.keys_values()
                prefix[served.layer] = (_own(keys_KPE, dtype), _own(values_KPE, dtype))
            elif hasattr(served, "changed"):
                at, reads = served.served_at(path) if hasattr(served, "served_at") else (path, path)
                parts.append(Part(at, reads, served.to(dtype)))
            elif hasattr(served, "instead"):
                parts.append(Part(path, path, served))
            else:
                raise UserError(f"{name}: what stands at {path} ({tuning.layout}) cannot share a base with others; serve it by itself")
        factors = {at: factors_of(each, dtype_of(self.stacks.groups[at].layers[0])) for at, each in given.items()}
        first = max((module.prefix_tokens for module in tuning.adapter.values() if hasattr(module, "keys_values")), default=0)  # type: ignore[type-var]
        virtual = sum(getattr(module, "virtual_tokens", 0) for module in tuning.adapter.values())
        prepared = Prepared(tuple(parts), factors, prefix, int(first), virtual, _notes(name, tuning, self.model))  # type: ignore[arg-type]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in prepared.tensors):
            raise UserError(f"{name}: some of its values are not finite: its training broke down; take an earlier checkpoint")
        return prepared

    def place(self, name: str, prepared: Prepared) -> None:
        """Between two rows: let the name be computed from now on."""
        assert name and name not in self._adapters, f"{name} is there already"
        with self._lock:
            self._adapters[name] = prepared
            self.stacks.add(name, prepared.factors)
            for path, (group, number) in self.groups.items():
                if name in group.factors and number in group.factors[name].numbers:
                    self._place(path).low_rank.add(name)
            for part in prepared.parts:
                source = self._place(part.reads)
                if part.reads != part.path:
                    source.listeners.add(name)
                self._place(part.path).stands[name] = Stand(part.module, source)
            self._rows.clear()

    def remove(self, name: str) -> None:
        """Between two rows: forget it. With the last one gone the model is the base again. Raises LookupError."""
        with self._lock:
            if self._adapters.pop(name, None) is None:
                raise LookupError(name)
            self.stacks.remove(name)
            free = []
            for path, place in self._places.items():
                place.stands.pop(name, None)
                place.low_rank.discard(name)
                place.listeners.discard(name)
                if place.is_free and path != self._head:
                    free.append(path)
            slots.lift(self.model, {path: self._places.pop(path) for path in free})  # type: ignore[misc]
            self._rows.clear()

    def close(self) -> None:
        """Take everything away."""
        for name in list(self._adapters):
            self.remove(name)
        slots.lift(self.model, self._places)  # type: ignore[arg-type]
        self._places = {}

    @contextmanager
    def rows(self, spans: Sequence[Span]) -> Iterator[None]:
        """Let the model, and its head, compute rows whose tokens go by these adapters.

        `spans` cover the row's tokens in order. Ids beyond the vocabulary are placeholders, by number, of their own span's adapter.
        Raises LookupError for an adapter that is not there.
        """
        with self._lock, torch.no_grad():
            before, self.row = self.row, self._row(spans)
            try:
                yield
            finally:
                self.row = before

    def first_position(self, name: str) -> int:
        """The position of a document's first token: behind the prefix, where there is one. Raises LookupError, as the next ones do."""
        return self._adapter(name).first_position if name else 0

    def virtual_tokens(self, name: str) -> int:
        """How many placeholders stand in front of each document: ids from `virtual_ids`."""
        return self._adapter(name).virtual_tokens if name else 0

    def virtual_ids(self, name: str) -> range:
        return range(self._vocabulary, self._vocabulary + self.virtual_tokens(name))

    def prefix(self, name: str) -> Mapping[int, tuple[Tensor, Tensor]]:
        """By layer, as a cache counts them: keys and values [K, P, E] in front of each document, in the model's dtype."""
        return self._adapter(name).prefix if name else {}

    def order(self, name: str) -> tuple[int, int]:
        """By which a row's spans may be sorted: where each adapter has as many tokens, in this order, nothing has to be gathered."""
        return self.stacks.order(name)

    @property
    def stack_bytes(self) -> int:
        """What the stacks take beside the adapters: at most `most_rows` rows a layer, whatever the number of adapters."""
        return sum(tensor.nbytes for tensor in self.stacks.tensors())

    def _adapter(self, name: str) -> Prepared:
        if (found := self._adapters.get(name)) is None:
            raise LookupError(name)
        return found

    def _row(self, spans: Sequence[Span]) -> Row:
        key = tuple(spans)
        row = self._rows.get(key)
        if row is not None and row.version == self.stacks.version:
            self.stacks.touch(row.share)
            return row
        for name in {name for _, _, name in key if name}:
            self._adapter(name)
        joined = _checked(key)
        share = self.stacks.share(joined, self.model.device)
        row = Row(joined[-1][1], joined, share, self.stacks.version)
        while len(self._rows) >= _KEPT_ROWS:
            del self._rows[next(iter(self._rows))]
        self._rows[key] = row
        return row

    def _place(self, path: str) -> Place:
        if (place := self._places.get(path)) is None:
            place = self._places[path] = Place(path, lambda: self.row, self.groups.get(path))
            place.vocabulary = self._vocabulary if path == self._embedding else None
            slots.place(self.model, {path: place})  # type: ignore[dict-item]
        return place


def _groups(model: Any) -> tuple[dict[str, tuple[Group, int]], list[Group]]:
    """Every linear layer's group and its number there: those that read one input are one group."""
    linears = {path: module for path, module in model.named_modules() if is_linear(module)}
    together = {paths[0]: paths for paths in slots.same_input(model, linears)}
    inside = {path for paths in together.values() for path in paths[1:]}
    where: dict[str, tuple[Group, int]] = {}
    groups: list[Group] = []
    for path in linears:
        if path not in inside:
            paths = together.get(path, [path])
            groups.append(Group(len(groups), [linears[each] for each in paths]))
            where |= {each: (groups[-1], number) for number, each in enumerate(paths)}
    return where, groups


def _checked(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Neighbours of one adapter as one span."""
    joined: list[Span] = []
    for start, end, name in spans:
        assert start == (joined[-1][1] if joined else 0) and end >= start, f"spans cover a row in order: {start} to {end}"
        if joined and joined[-1][2] == name:
            joined[-1] = (joined[-1][0], end, name)
        elif end > start:
            joined.append((start, end, name))
    assert joined, "a row without tokens"
    return tuple(joined)


def _notes(name: str, tuning: Tuning, model: Any) -> tuple[str, ...]:
    """What differs from what was trained."""
    if tuning.layout != "pissa" or not tuning.about.get("pissa", {}).get("quantised"):
        return ()
    lost = tuning.about["pissa"].get("weight_difference", {}).get("nf4")
    said = f"its matrices differ by {lost:.1%} from those trained" if lost is not None else "its matrices differ from those trained"
    return (
        f"{name} was trained over NF4 codes of its own, and rows of one batch share the base's: it is served as the LoRA of twice the rank "
        f"that stands in its folder, and {said}; `tunesmith chat` and `merge` use its own codes",
    )


def _own(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy without what it was a view of."""
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
