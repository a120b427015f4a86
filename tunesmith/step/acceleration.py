"""Whatever makes a step faster is compared with the plain way on a short piece of the run's own first batch, before the first step.

        plain      loss, gradient of every trained tensor ─┐
                                                           ├─ within the tolerance: everything stays on
        all on     loss, gradient of every trained tensor ─┘
                                      └─ else one after the other is switched on: what differs, or raises, is off and is named

Nothing of it is left in the run: gradients are asked for without being stored (so that no hook of an optimizer runs), dropout is
off and the generators' states are put back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.data.corpus.batches import Row
from tunesmith.models import slots, together
from tunesmith.models.parts import PARTS, standing
from tunesmith.step.piece import piece

# Relative difference of a gradient, by the dtype that is computed in: rounding alone gives a hundredth to a third of it.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.01}
FLOOR = 0.1  # of the tensors' usual gradient: one that is smaller, as that of a key's bias, which is 0, is rounding and little else
BUDGET_BYTES = 1024**3  # of gradients that are compared; of more tensors than that, some from every depth


@dataclass(slots=True)
class Acceleration:
    """Something that may be on or off, and is off when it is handed over. `off` undoes an `on` that raised half-way, too."""

    name: str  # as a user is told, such as "our own norms"
    on: Callable[[], None]
    off: Callable[[], None]
    tolerance: float  # largest relative difference of the loss and of each gradient, see `TOLERANCES`
    is_on: bool = False


def of_parts(model: Any, dtype: torch.dtype) -> list[Acceleration]:
    """Those of `models/parts` that are recognised in the model."""
    return [_of_part(model, PARTS[name].SAID, forwards, dtype) for name, forwards in standing.recognised(model, dtype).items()]


def _of_part(model: Any, said: str, forwards: dict[str, Any], dtype: torch.dtype) -> Acceleration:
    return Acceleration(
        said, lambda: standing.stand(model, forwards), lambda: standing.step_aside(model, forwards), TOLERANCES.get(dtype, 0.06)
    )


def of_updates(model: Any, dtype: torch.dtype) -> list[Acceleration]:
    """The low-rank updates in the model as one function each, those of one input together; off from now on."""
    modules = [module for module in slots.placed(model).values() if hasattr(module, "low_rank")]
    if not modules:
        return []
    one = Acceleration(
        "our own products of low-rank updates",
        lambda: together.plainly(modules, False),
        lambda: together.plainly(modules, True),
        TOLERANCES.get(dtype, 0.06),
    )
    one.off()
    return [one]


def proved(forward: Any, row: Row, accelerations: Sequence[Acceleration], parameters: Mapping[str, Tensor]) -> list[str]:
    """Switch on what gives the plain loss and gradients on a piece of this row; a sentence for each that does not, which stays off.

    `parameters` are the trained tensors by name.
    """
    if not accelerations:
        return []
    short, watched = piece(row, forward.model.get_input_embeddings().weight.shape[0]), _watched(parameters)

    def found() -> dict[str, Tensor]:
        return _gradients(forward, short, watched)

    plain = found()
    if not torch.isfinite(plain["loss"]):
        return [f"the loss of this run's first batch is not finite: nothing to compare with, so {_names(accelerations)} are left off"]
    if not _refusal(accelerations, found, plain):
        return []
    return [said for one in accelerations if (said := _refusal([one], found, plain))]


def gradients(forward: Any, row: Row, parameters: Mapping[str, Tensor]) -> None:
    """Make the loss and gradients of a piece of a row, for what watches them; nothing of it is kept."""
    _gradients(forward, piece(row, forward.model.get_input_embeddings().weight.shape[0]), _watched(parameters))


def _refusal(accelerations: Sequence[Acceleration], found: Callable[[], dict[str, Tensor]], plain: dict[str, Tensor]) -> str:
    """Switch them on; why they cannot stay on, or an empty text. What cannot stay is off again."""
    names = _names(accelerations)
    try:
        for one in accelerations:
            one.is_on = True  # before it is so: what raises half-way is to be taken back
            one.on()
        name, difference = _worst(found(), plain)
    except Exception as error:  # a kernel, a compiler, a class: whatever is raised, the plain way works
        said = f"{names} cannot be used here ({type(error).__name__}: {_first_line(error)}); the plain way is taken"
    else:
        tolerance = max(one.tolerance for one in accelerations)
        if difference <= tolerance:
            return ""
        said = (
            f"{names} give something else on this run's first batch than the plain way (relative difference {difference:.1e} at {name}, "
            f"{tolerance:.0e} would be rounding); the plain way is taken"
        )
    for one in accelerations:
        if one.is_on:
            one.off()
            one.is_on = False
    return said


def _gradients(forward: Any, row: Row, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The row's loss under "loss", and the gradient of each tensor that it depends on."""
    devices = [forward.model.device] if forward.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        loss = forward.loss(row)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True) if loss.requires_grad else ()
    named = {name: gradient for name, gradient in zip(parameters, gradients, strict=False) if gradient is not None}
    return {"loss": loss.detach()} | named


def _worst(found: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> tuple[str, float]:
    """The name and relative difference of what differs most; infinite for what is not finite or not there."""
    if found.keys() != plain.keys():
        return sorted(found.keys() ^ plain.keys())[0], float("inf")
    gradients = [name for name in plain if name != "loss"]
    norms = torch.stack([torch.linalg.vector_norm(plain[name].float()) for name in gradients] or [torch.zeros(())])
    floor = FLOOR * norms.square().mean().sqrt()
    differences = [(found["loss"] - plain["loss"]).abs().float() / plain["loss"].abs().float().clamp(min=1e-6)]
    for name, norm in zip(gradients, norms, strict=False):
        difference = torch.linalg.vector_norm(found[name].float() - plain[name].float())
        differences.append(difference / (norm + floor).clamp(min=1e-30))
    worst = torch.stack([torch.nan_to_num(one.to(norms.device), nan=float("inf")) for one in differences])  # one wait for the device
    at = int(worst.argmax())
    return ["loss", *gradients][at], float(worst[at])


def _watched(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors, or as many of them as fit the budget, evenly from first to last: full tuning of a large model has no room
    for two gradients of everything."""
    names = [name for name, tensor in parameters.items() if tensor.requires_grad]
    total = sum(parameters[name].nbytes for name in names)
    if total > BUDGET_BYTES:
        every = -(-total // BUDGET_BYTES)
        names = names[::every]
    return {name: parameters[name] for name in names}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


def _names(accelerations: Sequence[Acceleration]) -> str:
    return ", ".join(one.name for one in accelerations)
