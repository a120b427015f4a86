"""A matrix taken apart: its leading part as two thin factors, by singular values; and those that make up for rounding.

    W [out, in]  =  B [out, r] · A [r, in]  +  rest          B = U_r·√S_r     A = √S_r·V_rᵀ

No product B·A of that rank is nearer to W. With √S on both sides A and B have the same norm, which is what PiSSA trains from (Meng
et al. 2024, arXiv:2404.02948, equations 2 and 3).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

OVERSAMPLED = 16  # directions that a randomised SVD looks at beyond those asked for; 5 to 10 is the least (Halko, section 4.2)
EXACT_UP_TO = 1024  # the shorter side up to which a full SVD takes a fraction of a second
FLAT_ITERATIONS = 16  # rounding errors have hardly a largest direction: 8 iterations find .995 of the best part, 16 all but 1e-3


@torch.no_grad()
def leading(weight_OI: Tensor, rank: int, niter: int | Literal["exact"], seed: int) -> tuple[Tensor, Tensor]:
    """(B [out, rank], A [rank, in]) in fp32, on the device of the weight.

    `niter` subspace iterations of a randomised SVD, or "exact". The same seed gives the same factors; no other generator is
    touched. Raises AssertionError where the matrix has fewer singular values than `rank`.
    """
    assert 0 < rank <= min(weight_OI.shape), (rank, tuple(weight_OI.shape))
    weight_OI = weight_OI.float()
    if niter == "exact":
        u_OK, s_K, vt_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    else:
        u_OK, s_K, vt_KI = _randomised_svd(weight_OI, rank, niter, seed)
    root_R = s_K[:rank].sqrt()
    return u_OK[:, :rank] * root_R, root_R[:, None] * vt_KI[:rank]


def _randomised_svd(weight_OI: Tensor, rank: int, niter: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Halko et al. 2011, arXiv:0909.4061, algorithms 4.4 and 5.1: an orthonormal basis of where random directions are sent, and
    the SVD of the small matrix seen from it. Each product is made orthonormal, else the smaller directions drown in rounding."""
    columns = min(rank + OVERSAMPLED, *weight_OI.shape)
    generator = torch.Generator().manual_seed(seed)  # drawn on the CPU: the same numbers whatever the device
    basis_IK = torch.randn(weight_OI.shape[1], columns, generator=generator).to(weight_OI.device)
    basis_OK = _orthonormal(weight_OI @ basis_IK)
    for _ in range(niter):
        basis_OK = _orthonormal(weight_OI @ _orthonormal(weight_OI.T @ basis_OK))
    u_KK, s_K, vt_KI = torch.linalg.svd(basis_OK.T @ weight_OI, full_matrices=False)
    return basis_OK @ u_KK, s_K, vt_KI


def _orthonormal(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix)[0]


@torch.no_grad()
def loftq(weight_OI: Tensor, rank: int, rounded: Callable[[Tensor], Tensor], iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """(B [out, rank], A [rank, in]) for which rounded(W - B·A) + B·A is near W: LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1).

        Q = rounded(W - B·A)          B·A = the leading part of W - Q          `iterations` times, from B·A = 0

    `rounded` gives what is left of a matrix in 4 bits, in fp32. The paper ends with the last Q; whoever rounds W - B·A once more
    comes as near to W or nearer (measured: docs/methods/loftq.md), and needs to know no more than A and B to do it again.
    """
    weight_OI = weight_OI.float()
    exact = min(weight_OI.shape) <= EXACT_UP_TO
    update_OI = torch.zeros_like(weight_OI)
    for _ in range(iterations):
        b_OR, a_RI = leading(weight_OI - rounded(weight_OI - update_OI), rank, "exact" if exact else FLAT_ITERATIONS, seed)
        update_OI = b_OR @ a_RI
    return b_OR, a_RI
