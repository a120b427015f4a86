"""Full tuning: every weight is trained. The base is the result; nothing can be switched or folded.

Cost: 6N FLOP a token, and for AdamW in bf16 with fp32 masters 20 bytes a parameter (2 weight, 2 gradient, 4 master, 8 moments,
and 4 while gradients of several rows are added up).
"""

from typing import Any

from tunesmith.methods.settings import Full as Settings
from tunesmith.methods.tuning import Start, Tuning

NF4 = False
LEARNING_RATES = {576: 0.00021, 3072: 1e-5}  # by channels of the model


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """Every parameter once (a tied head is the embedding)."""
    return Tuning({}, dict(model.named_parameters()))


def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """The base's own values are the start."""
