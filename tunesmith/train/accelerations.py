"""What makes a run's steps faster, switched on: proved on the run's own first batch, kept in `plan.json`.

What a run began without it goes on without, since the last bits of sums depend on it. What it began with is proved again when it
is resumed: it may stand on another machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import Run
from tunesmith.data.corpus.batches import Row
from tunesmith.methods.tuning import Tuning
from tunesmith.step import acceleration, gpu_kernels
from tunesmith.step.acceleration import Acceleration
from tunesmith.step.forward import Forward
from tunesmith.train import folder


@dataclass(frozen=True, slots=True)
class Decision:
    """`record` stands in plan.json: names of what is on, and of what is off. `warnings` say why."""

    record: dict[str, list[str]]
    warnings: tuple[str, ...] = ()


def decided(out: Path, run: Run, forward: Forward, tuning: Tuning, row: Row, others: Sequence[Acceleration] = ()) -> Decision:
    """Switch on what this run may have and what is proved on `row`: our own parts and products, unless `train.kernels` is plain, and
    `others`."""
    model, plain = forward.model, run.train.kernels == "plain"
    updates = acceleration.of_updates(model, model.dtype)  # these are on wherever nobody trains: off from here on
    parts = [] if plain else acceleration.of_parts(model, model.dtype)
    kernels = gpu_kernels.of_run(forward)
    known = [*parts, *([] if plain else [*updates, *kernels]), *others]
    asked = [one for one in known if one.name not in without(out)]
    warnings = acceleration.proved(forward, row, asked, tuning.parameters)
    on = [one.name for one in asked if one.is_on]
    if run.train.recompute == "elementwise" and not any(one.name in on for one in parts):
        warnings.append("train.recompute: elementwise saves nothing here, since none of our own parts stands in this model")
    return Decision({"on": on, "off": [one.name for one in known if one.name not in on]}, tuple(warnings))


def without(out: Path) -> list[str]:
    """What the run began without."""
    kept: dict[str, Any] = folder.read_json(out / folder.PLAN) if (out / folder.PLAN).exists() else {}
    off: list[str] = kept.get("accelerations", {}).get("off", [])
    return off
