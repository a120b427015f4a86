"""Default learning rates: between the widths at which they are known along a straight line of logarithms, beyond them inversely by
width (narrow models take, and need, larger steps).

At 576 channels they are those of our own sweep (SmolLM2-135M, `benchmarks/sweep.py`), at 3,072 those of `peft`'s published comparison
(Llama-3.2-3B) for full, lora, dora, prompt, ptuning and ptuning_v2; pissa, prefix and freeze stand there by analogy."""

import math
from collections.abc import Mapping

Rates = Mapping[int, float]  # channels of the model (its hidden size) -> peak learning rate


def rate_at(rates: Rates, width: int) -> float:
    """The rate for a model of `width` channels, to two digits."""
    known = sorted(rates)
    if width <= known[0] or width >= known[-1]:
        nearest = known[0] if width <= known[0] else known[-1]
        return _tidy(rates[nearest] * nearest / width)
    upper = next(each for each in known if each > width)
    lower = known[known.index(upper) - 1]
    share = math.log(width / lower) / math.log(upper / lower)
    return _tidy(rates[lower] ** (1 - share) * rates[upper] ** share)


def beyond(rates: Rates, width: int) -> str:
    """What to say of a model that is narrower or wider than those at which the rates are known, or ""."""
    low, high = min(rates), max(rates)
    if low <= width <= high:
        return ""
    known = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"the default learning rate is known for models of {known} channels, this one has {width:,}: try a third and three times it"


def _tidy(rate: float) -> float:
    return float(f"{rate:.2g}")
