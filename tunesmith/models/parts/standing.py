"""Parts put into a model and taken out of it again.

A part stands on the instance in place of the class's forward. Where an adapter stands at the same module, the part stands behind
it: the adapter's `slots.own_forward` finds it there. An adapter must not be placed or lifted while parts stand.
"""

from typing import Any

import torch

from tunesmith.models import slots
from tunesmith.models.parts import PARTS


def recognised(model: Any, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """`{part: {path: forward}}` of the modules that parts can stand in for; what stands inside such an MLP is part of it."""
    found: dict[str, dict[str, Any]] = {}
    taken: set[int] = set()
    for name, part in PARTS.items():
        for path, module in model.named_modules():
            if id(module) not in taken and (forward := part.forward_of(module, dtype)) is not None:
                found.setdefault(name, {})[path] = forward
                taken.update(id(inner) for inner in module.children())
    return found


def stand(model: Any, forwards: dict[str, Any]) -> None:
    """Put the forwards of one part in their places."""
    for path, forward in forwards.items():
        slots.stand_in(model.get_submodule(path), forward)


def step_aside(model: Any, forwards: dict[str, Any]) -> None:
    """Let the classes compute again, where a part stands."""
    for path in forwards:
        slots.step_aside(model.get_submodule(path))
