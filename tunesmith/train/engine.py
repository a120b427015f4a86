"""Settings of the engine that a machine or another setting may forbid: what `auto` is, and what is refused before anything is loaded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import Run
from tunesmith.data.corpus.batches import Row
from tunesmith.errors import UserError
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.step import acceleration, buckets, compiled, fp8, graphs
from tunesmith.step.acceleration import TOLERANCES, Acceleration
from tunesmith.step.compiled import Compiled
from tunesmith.step.forward import Forward
from tunesmith.step.fp8 import Eighths
from tunesmith.step.graphs import Graphs
from tunesmith.train import accelerations, folder

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
    if run.train.cuda_graphs is True and (why := not_recorded(run, device)):
        problems.append(f"train.cuda_graphs: {why}; leave it at auto, or set it to false")
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
    if run.train.cuda_graphs is True:
        return False, "train.cuda_graphs records the blocks as they are"
    seconds = f"about {compiled.SECONDS[device.type]:.0f} s of compiling"
    if compiled.pays(flops, device, dtype, run.train.threads):
        return True, f"{steps:,} steps pay for {seconds}"
    return False, f"{steps:,} steps would not pay for {seconds}"


def not_recorded(run: Run, device: torch.device) -> str:
    """Why a row's launches cannot be recorded in this run; empty where they can."""
    if why := graphs.impossible(device):
        return why
    if run.method.name not in graphs.METHODS:
        return f"{run.method.name} does something else on the host for every row or step, which a recording would not repeat"
    if getattr(run.method, "dropout", 0.0):
        return "method.dropout draws for every row, which a recording is not proved to repeat"
    for name, why in (
        ("fp8", "scales and copies of the matrices in 8 bits may be taken away in the middle of a run"),
        ("optimizer_in_backward", "the optimizer's steps stand inside of the backward pass, with a rate that a recording would not change"),
    ):
        if getattr(run.train, name):
            return f"train.{name}: {why}"
    if run.train.compile is True:
        return "train.compile: compiled blocks are checked on the host before every call, which a recording leaves out"
    if run.train.recompute in ("blocks", "offload"):
        return f"train.recompute={run.train.recompute} is for where memory is short, and recordings keep memory of their own"
    return ""


def recorded(run: Run, device: torch.device, parameters: int) -> tuple[bool, str]:
    """What train.cuda_graphs=auto is, and why. `parameters`: of the whole model."""
    if why := not_recorded(run, device):
        return False, why
    if parameters > graphs.LARGEST:
        return False, f"{parameters / 1e9:.1f}B parameters: their products take longer than their launches"
    return True, f"{parameters / 1e9:.1f}B parameters: launches are much of a step"


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


def recordings(
    out: Path, run: Run, forward: Forward, tuning: Tuning, rows: Sequence[Row], most: int, longest: int
) -> tuple[dict[str, list[str]], list[str]]:
    """A row's launches as recorded graphs, on, where the run asked for them and they are proved on the first of `rows`: what stands in
    plan.json as on and off, and sentences for the user. `most`: tokens of a row; `longest`: of a document.

    They come last: whatever else makes a step faster is recorded with it.
    """
    nothing, off = {"on": list[str](), "off": list[str]()}, {"on": list[str](), "off": [graphs.NAME]}
    if run.train.cuda_graphs is not True or graphs.NAME in accelerations.without(out):
        return (nothing if run.train.cuda_graphs is not True else off), []
    device = forward.model.device
    if why := not_recorded(run, device):  # what was left to us came out so that it cannot be
        return off, [f"train.cuda_graphs: {why}; the plain way is taken"]
    if forward.decoder is None or not forward.packed:
        return off, ["train.cuda_graphs: the class computes its rows as it is, so nothing is recorded; the plain way is taken"]
    found = buckets.of_rows(rows, most, longest)
    fitting = [row for row in rows if not (row.parents or row.behind)]
    if not found:
        return off, ["train.cuda_graphs: the rows share beginnings (data.share_prefixes), so none is replayed; the plain way is taken"]
    first = slots.first_position(forward.model)
    made = Graphs(forward.decoder, first, tuning.parameters, found, graphs.recorder(device))
    forward.replayed = made
    one = Acceleration(graphs.NAME, made.on, made.off, TOLERANCES.get(forward.model.dtype, 0.06))
    told = acceleration.proved(forward, fitting[0], [one], tuning.parameters)
    made.settled = True
    if not one.is_on:
        forward.replayed = None
        return off, told
    return {"on": [graphs.NAME], "off": []}, told


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
