"""The LoRA that is nearest to a change of matrices: the leading part of each change, by singular values.

    ΔW [out, in]  ≈  B [out, r] · A [r, in]          no product of that rank is nearer (Eckart & Young 1936)

One rank for all layers, since servers are told one; a layer with less to say has rows of zeros. The share of energy that is kept
is Σ‖B·A‖² / Σ‖ΔW‖² over all layers.

Shapes: O outputs, I inputs of a layer, R directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.methods.lora import LoRA
from tunesmith.methods.parts.decompose import EXACT_UP_TO, FLAT_ITERATIONS, leading
from tunesmith.models.draws import seed_of


@dataclass(frozen=True, slots=True)
class Change:
    """One layer's change taken apart, the largest directions first: B [out, R] and A [R, in], fp32 on the CPU."""

    path: str
    b_OR: Tensor
    a_RI: Tensor
    energy: float  # ‖ΔW‖²
    weight: float  # ‖W‖

    @property
    def energies_R(self) -> Tensor:
        """What each direction holds: the square of its singular value, in fp64."""
        return self.b_OR.double().square().sum(0) * self.a_RI.double().square().sum(1)

    def lost(self, rank: int) -> float:
        """‖ΔW − B·A‖ / ‖ΔW‖ at this rank."""
        kept = self.energies_R[:rank].sum().item()
        return (max(0.0, self.energy - kept) / self.energy) ** 0.5 if self.energy else 0.0


@torch.no_grad()
def of_matrix(path: str, change_OI: Tensor, weight: float, most: int, seed: int) -> Change:
    """The leading `most` directions of a change; by a randomised SVD where the matrix is large. `weight` is ‖W‖."""
    change_OI = change_OI.float()
    rank = min(most, *change_OI.shape)
    niter = "exact" if min(change_OI.shape) <= EXACT_UP_TO else FLAT_ITERATIONS
    b_OR, a_RI = leading(change_OI, rank, niter, seed_of(seed, path))  # type: ignore[arg-type]
    return Change(path, b_OR.cpu(), a_RI.cpu(), change_OI.double().square().sum().item(), weight)


@torch.no_grad()
def of_product(path: str, up_OR: Tensor, down_RI: Tensor, weight: float, most: int) -> Change:
    """The same of a change that is a product of two thin factors already: exactly, and no matrix [out, in] is made."""
    left_OR, upper_RR = torch.linalg.qr(up_OR.double().cpu())
    right_IR, lower_RR = torch.linalg.qr(down_RI.double().cpu().T)
    u_RR, s_R, vt_RR = torch.linalg.svd(upper_RR @ lower_RR.T)
    rank = min(most, len(s_R))
    root_R = s_R[:rank].sqrt()
    b_OR = (left_OR @ u_RR[:, :rank]) * root_R
    a_RI = root_R[:, None] * (vt_RR[:rank] @ right_IR.T)
    return Change(path, b_OR.float(), a_RI.float(), s_R.square().sum().item(), weight)


def kept(changes: Sequence[Change], rank: int) -> float:
    """The share of all layers' energy that a LoRA of this rank holds; 1 where nothing changed."""
    whole = sum(change.energy for change in changes)
    return min(1.0, sum(change.energies_R[:rank].sum().item() for change in changes) / whole) if whole else 1.0


def least_rank(changes: Sequence[Change], share: float) -> int:
    """The least rank that holds this share of the energy, or all directions that are known."""
    most = max(change.a_RI.shape[0] for change in changes)
    whole = sum(change.energy for change in changes)
    held_R = torch.zeros(most, dtype=torch.float64)
    for change in changes:
        energies_R = change.energies_R
        held_R[: len(energies_R)] += energies_R
    enough_R = held_R.cumsum(0) >= share * whole
    return int(enough_R.int().argmax()) + 1 if bool(enough_R.any()) else most


@torch.no_grad()
def lora(change: Change, rank: int) -> LoRA:
    """The update of one layer, with scale 1."""
    module = LoRA(change.a_RI.shape[1], change.b_OR.shape[0], rank, 1.0)
    module.A.zero_()
    held = min(rank, change.a_RI.shape[0])
    module.A[:held] = change.a_RI[:held]
    module.B[:, :held] = change.b_OR[:, :held]
    return module
