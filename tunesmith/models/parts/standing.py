"""Parts put into a model and taken out of it again.

A part stands on the instance in place of the class's forward. Where an adapter stands at the same module, the part stands behind
it: the adapter's `slots.own_forward` finds it there. An adapter must not be placed or lifted while parts stand.
"""

from typing import Any

import torch

from tunesmith.models import slots
from tunesmith.models.parts import PARTS


def recognised(model: Any, part: str, dtype: torch.dtype) -> dict[str, Any]:
    """`{path: forward}` of the modules in the repeated blocks, and behind them, that this part can stand in for."""
    found = {}
    for path, module in model.named_modules():
        forward = PARTS[part].forward_of(module, dtype)
        if forward is not None:
            found[path] = forward
    return found


def stand(model: Any, forwards: dict[str, Any]) -> None:
    """Put them in their places."""
    for path, forward in forwards.items():
        slots.stand_in(model.get_submodule(path), forward)


def step_aside(model: Any, forwards: dict[str, Any]) -> None:
    """Let the classes compute again."""
    for path in forwards:
        slots.step_aside(model.get_submodule(path))
