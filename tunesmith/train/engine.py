"""Settings of the engine that a machine or another setting may forbid: what `auto` is, and what is refused before anything is loaded."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import Run
from tunesmith.data.corpus.batches import Row
from tunesmith.errors import UserError
from tunesmith.methods.tuning import Tuning
from tunesmith.step import acceleration, compiled, fp8
from tunesmith.step.acceleration import TOLERANCES, Acceleration
from tunesmith.step.compiled import Compiled
from tunesmith.step.forward import Forward
from tunesmith.step.fp8 import Eighths
from tunesmith.train import folder

# Methods whose blocks a compiler sees whole. DoRA keeps norms between steps, by a tensor's version, which a compiler does not know.
COMPILES = ("lora", "pissa", "adapter", "full", "freeze", "prefix", "ptuning_v2", "prompt", "ptuning")
OF_COMPILED = "compiled blocks"
FP8_UNTIL = "fp8_until"  # in plan.json: the step after which the run went on in full


def refuse(run: Run, device: torch.device) -> None:
    """Raises UserError with everything that was asked for and cannot be here, all at once."""
    problems = []
    if run.train.compile is True and (why := not_compiled(run, device)):
        problems.append(f"train.compile: {why}; leave it at auto, or set it to false")
    if run.train.fp8 and (why := fp8.impossible(device)):
        problems.append(f"train.fp8: {why}; leave it at false")
    if run.train.fp8 and run.method.name not in fp8.METHODS:
        problems.append(
            f"train.fp8: {run.method.name} has no products with frozen matrices in it that are ours; {' and '.join(fp8.METHODS)} have"
        )
    if run.train.fp8 and run.train.compile is True:
        problems.append("train.fp8 and train.compile: each takes the products over; set train.compile to false")
    if problems:
        raise UserError(*problems)


def not_compiled(run: Run, device: torch.device) -> str:
    """Why this run cannot be compiled; empty where it can."""
    if run.method.name not in COMPILES:
        return f"{run.method.name} is not compiled: it keeps numbers of its own from step to step"
    return compiled.impossible(device)


def compiles(run: Run, device: torch.device, dtype: torch.dtype, steps: int, flops: float) -> tuple[bool, str]:
    """What train.compile=auto is, and why. `flops`: of the whole run."""
    assert isinstance(run.train.threads, int)
    if why := not_compiled(run, device):
        return False, why
    if run.train.fp8:
        return False, "train.fp8 takes the products over"
    seconds = f"about {compiled.SECONDS[device.type]:.0f} s of compiling"
    if compiled.pays(flops, device, dtype, run.train.threads):
        return True, f"{steps:,} steps pay for {seconds}"
    return False, f"{steps:,} steps would not pay for {seconds}"


def said(run: Run, origins: Mapping[str, str]) -> str:
    """Whether the blocks are compiled, and why, for the preview of a run."""
    why = origins.get("train.compile", "").removeprefix("auto: ")
    return ("yes" if run.train.compile else "no") + (f": {why}" if why else "")


def compiled_blocks(run: Run, model: Any) -> tuple[Compiled | None, list[str]]:
    """The switch in every block, where the run is to be compiled; or why it cannot be, in a sentence."""
    if run.train.compile is not True:
        return None, []
    try:
        return compiled.place(model), []
    except LookupError as error:
        return None, [f"train.compile: {error.args[0]}; the plain way is taken"]


def others(switch: Compiled | None, dtype: torch.dtype) -> list[Acceleration]:
    """What is compared with the plain way beside our own parts."""
    return [] if switch is None else [Acceleration(OF_COMPILED, switch.on, switch.off, TOLERANCES.get(dtype, 0.06))]


def settle(switch: Compiled | None) -> None:
    """The comparison is over: from now on the compiler may not end the run."""
    if switch is not None:
        switch.settled = True


def eighths(out: Path, run: Run, forward: Forward, tuning: Tuning, row: Row, step: int) -> tuple[Eighths | None, list[str]]:
    """Products in 8 bits, on, where the run asked for them and they are proved on `row`; sentences for the user. `step`: done so far."""
    if not run.train.fp8 or step >= kept(out).get(FP8_UNTIL, math.inf):
        return None, []
    paths = [path for path, module in tuning.adapter.items() if hasattr(module, "low_rank")]
    found = fp8.of_model(forward.model, paths)
    told = fp8.calibrate(found, lambda: acceleration.gradients(forward, row, tuning.parameters))
    one = Acceleration("8-bit products", found.on, found.off, fp8.TOLERANCE)
    told += acceleration.proved(forward, row, [one], tuning.parameters)
    return (found if one.is_on else None), told


def kept(out: Path) -> dict[str, int]:
    """What of this in plan.json was decided on the way, and holds for a resumed run too."""
    held = folder.read_json(out / folder.PLAN) if (out / folder.PLAN).exists() else {}
    return {FP8_UNTIL: held[FP8_UNTIL]} if FP8_UNTIL in held else {}


def left_fp8(out: Path, held: Eighths, forward: Forward, row: Row, step: int) -> str:
    """Compare the loss of a held row both ways after a step; where it has drifted, go on in full, remember it, and say so."""
    if step % fp8.EVERY or not (why := fp8.drifted(held, lambda: forward.mean_loss([row])[0])):
        return ""
    folder.write_json(out / folder.PLAN, folder.read_json(out / folder.PLAN) | {FP8_UNTIL: step})
    return why
