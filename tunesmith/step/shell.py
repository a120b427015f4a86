"""One block that stands for all blocks of its kind, so that a compiler sees one thing and compiles it once.

A compiled function holds for the very objects that it was made with: thirty blocks, with adapters on their instances, would be
compiled thirty times. A shell is a block without tensors of its own: the same classes, the same adapters in the same places. Before
a call it is lent the dictionaries of parameters and the few attributes in which a block differs from the first; it gives nothing
back, since it owns nothing.

The shell is the class's own code: parts that stand in for it (`models/parts`) and products computed together (`models/together.py`)
are what a compiler does by itself, and are left out.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tunesmith.models import slots
from tunesmith.models.nf4 import is_nf4
from tunesmith.step import nf4_operator

STANDS_FOR = "_tunesmith_stands_for"  # on a shell's module: the block's own, which it stands for now
_STANDING = ("forward", slots.PART)  # what others put on instances
_TENSORS = ("_parameters", "_buffers")


@dataclass(frozen=True, slots=True)
class Shell:
    block: nn.Module
    modules: tuple[nn.Module, ...]  # the shell's own, adapters among them, in the order of `parts_of`


@dataclass(frozen=True, slots=True)
class Loan:
    """What makes a shell a certain block: for each of its modules the module that it stands for, and what differs."""

    shell: Shell
    modules: tuple[nn.Module, ...]
    attributes: tuple[dict[str, Any], ...]

    def lend(self) -> nn.Module:
        """The shell, standing for the block from now on."""
        for mine, theirs, attributes in zip(self.shell.modules, self.modules, self.attributes, strict=True):
            vars(mine).update(attributes, training=theirs.training)
        return self.shell.block


def shells(model: Any) -> list[tuple[nn.Module, Loan]]:
    """Every block with what lends it to a shell; blocks of one kind have one shell.

    Raises LookupError for a model with something in its blocks that cannot stand in a shell.
    """
    made: dict[Any, Shell] = {}
    found = []
    for path, block in slots.blocks(model):
        adapter = {name.removeprefix(path).lstrip("."): module for name, module in _inside(model, path)}
        parts = tuple(parts_of(block, adapter))
        kind = tuple((name, type(module)) for name, module in parts)
        if kind not in made:
            made[kind] = _shell(block, adapter)
        shell, modules = made[kind], tuple(module for _, module in parts)
        found.append((block, Loan(shell, modules, tuple(map(_differing, shell.modules, modules)))))
    return found


def parts_of(block: nn.Module, adapter: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every module of a block and of what stands in it, in a fixed order."""
    yield from block.named_modules(remove_duplicate=False)
    for path, module in adapter.items():
        for name, inner in module.named_modules():
            yield f"{path}|{name}", inner


def _inside(model: Any, path: str) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in slots.placed(model).items() if name == path or name.startswith(path + ".")]


def _shell(block: nn.Module, adapter: Mapping[str, nn.Module]) -> Shell:
    new, copies = _copy(block), {path: _copy(module) for path, module in adapter.items()}
    for path, module in copies.items():
        layer: Any = new.get_submodule(path)
        if (attach := getattr(module, "attach", None)) is not None:
            attach(layer)
        else:
            object.__setattr__(layer, "forward", partial(module, layer))
    return Shell(new, tuple(module for _, module in parts_of(new, copies)))


def _copy(module: nn.Module) -> nn.Module:
    """The tree of modules anew, as the classes have it: what stood on instances is gone, everything else is shared."""
    new = copy.copy(module)
    if is_nf4(module):
        new.__class__ = nf4_operator.Nf4Product
    vars(new)["_modules"] = {name: None if child is None else _copy(child) for name, child in module._modules.items()}
    for name in _STANDING:
        vars(new).pop(name, None)
    return new


def _differing(shell: nn.Module, module: nn.Module) -> dict[str, Any]:
    """Attributes of a block's module that the shell's does not have, and always the tensors."""
    own, given = vars(shell), vars(module)
    skipped = {"_modules", *_STANDING}
    differing = {name: value for name, value in given.items() if name in _TENSORS or not _same(own.get(name), value)}
    return {name: value for name, value in differing.items() if name not in skipped} | {STANDS_FOR: module}


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, int | float | str) and one == other)
