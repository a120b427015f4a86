"""Layers that are called one after the other with the same input, q k v and gate up: computed at the first call, handed out at the next.

A class calls `q_proj(h)`, `k_proj(h)` and `v_proj(h)` with the same object h. Whichever comes first computes all of them, in one
function with one product for the narrow sides of all their updates (`models/products.py`), and the others find their outputs
waiting. What is not asked for with the very same tensor, unchanged and under the same grad mode, is thrown away and computed anew:
a class that feeds its layers otherwise is computed right, only not faster.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import products


@dataclass(slots=True)
class Waiting:
    """Outputs that were computed with x and not yet asked for, by the number of their layer."""

    x: Tensor  # held, so that no other tensor can be taken for it
    key: tuple[int, bool]
    outputs: dict[int, Tensor]


@dataclass(slots=True)
class Together:
    """Layers of one input and the modules that stand beside them.

    A module gives `low_rank(layer, dtype)`: a `products.Update`, or None while it has to be computed alone.
    """

    layers: Sequence[nn.Module]
    modules: Sequence[Any]
    _waiting: dict[int, Waiting] = field(default_factory=dict)  # by thread: a model may answer in one while it learns in another
    _downs: tuple[list[Tensor], Tensor] | None = None  # the narrow sides, and all of them in one matrix

    def __call__(self, number: int, x: Tensor) -> Tensor:
        """The output of layer `number` with its update: [..., I] to [..., O]."""
        if torch.compiler.is_compiling():
            return self.modules[number](self.layers[number], x)  # type: ignore[no-any-return]
        thread, key = threading.get_ident(), (x._version, torch.is_grad_enabled())
        waiting = self._waiting.pop(thread, None)
        if waiting is None or waiting.x is not x or waiting.key != key or number not in waiting.outputs:
            updates = [module.low_rank(layer, x.dtype) for layer, module in zip(self.layers, self.modules, strict=True)]
            if any(update is None for update in updates):
                return self.modules[number](self.layers[number], x)  # type: ignore[no-any-return]
            waiting = Waiting(x, key, dict(enumerate(products.updated(x, updates, self._down(updates)))))
        y = waiting.outputs.pop(number)
        if waiting.outputs:
            self._waiting[thread] = waiting
        return y

    def _down(self, updates: Sequence[products.Update]) -> Tensor:
        """The narrow sides of all updates, one below the other; made again when one of them was."""
        downs = [update.down_KI for update in updates]
        if self._downs is None or any(new is not old for new, old in zip(downs, self._downs[0], strict=True)):
            self._downs = downs, torch.cat(downs)
        return self._downs[1]


def plainly(modules: Iterable[Any], plain: bool) -> None:
    """Let each of these modules be computed alone and by plain operators, or as fast as can be."""
    for module in modules:
        module.plain = plain


def stand(layers: Sequence[nn.Module], modules: Sequence[Any]) -> None:
    """Put the layers' forwards together; whoever takes a module away takes its layer out of it by removing the `forward`."""
    together = Together(layers, modules)
    for number, layer in enumerate(layers):
        object.__setattr__(layer, "forward", partial(together, number))
