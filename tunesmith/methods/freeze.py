"""Freeze tuning: the last n decoder blocks are trained, what lies below them is only computed.

No gradient goes below the first trained block, so that a step costs 2N FLOP a token for the frozen part and 6N for the rest.
"""

from typing import Any

from tunesmith.methods.settings import Freeze as Settings
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots

NF4 = False
LEARNING_RATE = 5e-5  # at about 1B parameters; the loop scales it by width


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """Raises LookupError where the model has fewer blocks than `layers`."""
    found = slots.blocks(model)
    if settings.layers > len(found):
        raise LookupError(f"method.layers={settings.layers}, but the model has {len(found)} blocks")
    chosen = tuple(path + "." for path, _ in found[-settings.layers :])
    embedding = {id(p) for p in model.get_input_embeddings().parameters()}
    in_blocks = found[0][0].rpartition(".")[0] + "."
    parameters = {}
    for name, parameter in model.named_parameters():
        is_embedding = id(parameter) in embedding
        is_head = not is_embedding and not name.startswith(in_blocks)
        if name.startswith(chosen) or (settings.embeddings and is_embedding) or (settings.head and is_head):
            parameters[name] = parameter
    return Tuning({}, parameters)


def init(tuning: Tuning, seed: int) -> None:
    """The base's own values are the start."""
