"""Kernels of a GPU that stand in no module's place: the loss made where the logits stood, and NF4 matrices in one launch."""

from dataclasses import replace
from functools import partial
from typing import Any

from tunesmith.models import kernels, nf4
from tunesmith.step.acceleration import TOLERANCES, Acceleration


def of_run(forward: Any) -> list[Acceleration]:
    """Those that this run could use, switched off: none on a CPU, or where nothing would call them."""
    model, tolerance = forward.model, TOLERANCES.get(forward.model.dtype, 0.06)
    nf4.use_kernel(False)
    found: list[Acceleration] = []
    if not kernels.available(model.device):
        return found
    head = forward.head
    if head is not None and head.placed is None:
        on, off = (partial(setattr, forward, "head", replace(head, in_place=in_place)) for in_place in (True, False))
        found.append(Acceleration("the loss's own kernel", on, off, tolerance))
    if any(nf4.is_nf4(module) for module in model.modules()):
        # bit for bit the same, which is asked where it is first used; behind it stands whatever else differs between two passes
        found.append(Acceleration("NF4's own kernel", partial(nf4.use_kernel, True), partial(nf4.use_kernel, False), tolerance))
    return found
