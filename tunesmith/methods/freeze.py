"""Freeze tuning: the last n decoder blocks are trained, what lies below them is only computed.

No gradient goes below the first trained block, so that a step costs 2N FLOP a token for the frozen part and 6N for the rest.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from tunesmith.methods.settings import Freeze as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots

NF4 = False
LEARNING_RATE = 5e-5  # at about 1B parameters; the loop scales it by width


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """Raises LookupError where the model has fewer blocks than `layers`."""
    found = slots.blocks(model)
    if settings.layers > len(found):
        raise LookupError(f"method.layers={settings.layers}, but the model has {len(found)} blocks")
    chosen = tuple(path + "." for path, _ in found[-settings.layers :])
    wanted: set[int] = set()
    if settings.embeddings:
        wanted |= {id(p) for p in model.get_input_embeddings().parameters()}
    if settings.head:
        wanted |= {id(p) for p in _head(model, found)}
    parameters = {name: p for name, p in model.named_parameters() if name.startswith(chosen) or id(p) in wanted}
    return Tuning({}, parameters)


def _head(model: Any, blocks: list[tuple[str, nn.Module]]) -> Iterator[nn.Parameter]:
    """The final norm, which stands behind the blocks (OPT's before them, by name), and the head where it is not tied."""
    parent, _, name = blocks[0][0].rpartition(".")[0].rpartition(".")
    behind = False
    for key, module in model.get_submodule(parent).named_children():
        if behind or key.startswith("final"):
            yield from module.parameters()
        behind = behind or key == name
    tied = {id(p) for p in model.get_input_embeddings().parameters()}
    yield from (p for p in model.get_output_embeddings().parameters() if id(p) not in tied)


def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """The base's own values are the start."""
