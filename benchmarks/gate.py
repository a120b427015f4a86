"""Whether a run counts: its loss curve against the float32 reference over the documents that it computed.

The rule. At the first step nothing has been trained and the losses must agree within `FIRST` of the number format; LoRA's first
values do not matter there. After it they may differ by `LATER`, or by three times what the reference's own seeds differ by. A
case may name a noise of its own, where a head of random first values decides the loss. A contender must have seen every document.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST = {"float32": 0.002, "bfloat16": 0.01}  # relative
LATER = {"float32": 0.01, "bfloat16": 0.02}


@dataclass(frozen=True, slots=True)
class Verdict:
    agrees: bool
    why: str
    largest: float | None = None  # relative difference of a step's loss from the reference


def judge(losses: Sequence[float | None], reference: Sequence[Sequence[float]], dtype: str, noise: float = 0.0) -> Verdict:
    """`reference`: a curve for each seed; the run's first steps are held against it."""
    if not losses or any(loss is None or not math.isfinite(loss) for loss in losses):
        return Verdict(False, "a loss is missing or not finite")
    if len(losses) < len(reference[0]):
        return Verdict(False, f"{len(losses)} steps where the reference has {len(reference[0])}")
    largest = 0.0
    for number, seeds in enumerate(zip(*reference, strict=True)):
        middle = sum(seeds) / len(seeds)
        spread = (max(seeds) - min(seeds)) / abs(middle)
        allowed = max(noise, FIRST[dtype] if number == 0 else LATER[dtype], 3 * spread if noise or number else 0.0)
        difference = abs((losses[number] or 0.0) - middle) / abs(middle)
        largest = max(largest, difference)
        if difference > allowed:
            return Verdict(False, f"step {number + 1}: {losses[number]:.4f}, the reference has {middle:.4f}", largest)
    return Verdict(True, f"within {largest:.2%} of the reference over {len(reference[0])} steps", largest)
