"""Tensors that need not be kept for the backward pass, since what they are made of is kept anyway.

    x ── norm ── y ──┬── q          the norm keeps x and one number a token, each product keeps y:
                     ├── k          y is x scaled, so whoever keeps y is given a recipe instead,
                     └── v          and y is made again once, for all of them

While `remembered` is open, a part tells by `remember` how its output can be made again, bit for bit. PyTorch hands every tensor
that an operator wants to keep to `_pack`; one that lies in the memory of such an output is exchanged for its recipe, whoever
keeps it: a linear layer, an adapter's product, whatever view of it. Nothing depends on the method or on the architecture.

An output is known by its storage, not by its address: an address is used again as soon as its tensor is gone, while a storage
stays itself as long as somebody holds a weak reference to it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

Make = Callable[..., Tensor]


@dataclass(slots=True, eq=False)
class Recipe:
    """How one output is made again. `users` counts who keeps a recipe instead of it: after as many have asked, it is dropped again."""

    make: Make
    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]  # of the inputs: changed in place, they would give something else
    version: int  # of the output, by which the same is seen
    storage: StorageWeakRef  # keeps the storage's identity from being used again, not its memory
    bytes: int
    users: int = 0
    asked: int = 0
    made: Tensor | None = None

    def output(self) -> Tensor:
        """The output, contiguous. Raises RuntimeError where something that it is made of was changed in place."""
        if self.made is None:
            if tuple(one._version for one in self.inputs) != self.versions:
                raise RuntimeError("a tensor that another one is made of again in the backward pass was changed in place")
            with torch.no_grad():
                self.made = self.make(*self.inputs)
        made, self.asked = self.made, self.asked + 1
        if self.asked == self.users:  # a second backward pass through the same graph begins anew
            self.made, self.asked = None, 0
        return made


@dataclass(slots=True)
class Book:
    """The recipes of one forward pass, by storage."""

    recipes: dict[int, Recipe] = field(default_factory=dict)

    def of(self, tensor: Tensor) -> Recipe | None:
        """The recipe for what lies in this tensor's memory, unless it was changed in place since."""
        if type(tensor) is not Tensor or tensor.layout != torch.strided:
            return None
        recipe = self.recipes.get(tensor.untyped_storage()._cdata)
        return recipe if recipe is not None and recipe.version == tensor._version else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A view of an output, kept as its recipe."""

    recipe: Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


_here = threading.local()  # a model may answer in one thread while it learns in another


def remember(output: Tensor, make: Make, *inputs: Tensor) -> None:
    """`make(*inputs)` gives `output` again, bit for bit. The inputs must be kept for the backward pass anyway."""
    book: Book | None = getattr(_here, "book", None)
    if book is None:
        return
    storage = output.untyped_storage()
    kept = tuple(one.detach() for one in inputs)
    versions = tuple(one._version for one in kept)
    book.recipes[storage._cdata] = Recipe(make, kept, versions, output._version, StorageWeakRef(storage), storage.nbytes())


@contextmanager
def remembered() -> Iterator[Book]:
    """What is computed here keeps recipes instead of tensors that parts can make again. Open it around a block, or around many;
    the backward pass comes after it.

    What is checkpointed inside keeps nothing and is not changed by this.
    """
    if not torch.is_grad_enabled():
        yield Book()
        return
    before, book = getattr(_here, "book", None), Book()
    _here.book = book
    try:
        with saved_tensors_hooks(lambda tensor: _pack(book, tensor), _unpack):
            yield book
    finally:
        _here.book = before
        book.recipes = {}  # those in use are held by who uses them


def _pack(book: Book, tensor: Tensor) -> Any:
    recipe = book.of(tensor)
    if recipe is None:
        # an operator that keeps its own output would hold itself alive through it
        return tensor if tensor.grad_fn is None else tensor.detach()
    recipe.users += 1
    return _Kept(recipe, tensor.size(), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


def _unpack(kept: Any) -> Tensor:
    if type(kept) is not _Kept:
        return kept
    output = kept.recipe.output()
    if kept.dtype != output.dtype:
        output = output.view(kept.dtype)
    return output.as_strided(kept.size, kept.stride, kept.offset)
