"""Which kernels compute attention here: torch's own, the first that gives what the definition gives on this device, for this dtype
and shape of heads. Asked once, at the start of a run; what is not the first choice is said.

Shapes: H query heads, K key/value heads, T tokens, E head size.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from tunesmith.models import attention_cpu, attention_cuda
from tunesmith.models.chunked_attention import along_path
from tunesmith.models.forest import Forest, forest_of
from tunesmith.models.merged_attention import Kernels, merged

CPU = Kernels(
    "torch's flash operator", attention_cpu.causal, attention_cpu.causal_backward, attention_cpu.full, attention_cpu.full_backward
)


def kernels_for(q_HTE: Tensor, k_KTE: Tensor) -> Kernels | None:
    """Kernels that give an lse and take one back, or None where this device has none for such tensors."""
    if q_HTE.device.type == "cpu":
        return CPU
    return chosen(q_HTE.device, q_HTE.dtype, q_HTE.shape[0], k_KTE.shape[0], q_HTE.shape[-1])


@cache
def chosen(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> Kernels | None:
    """The first of a card's candidates that gives what the definition gives: asked once a shape of heads."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    for candidate in attention_cuda.CANDIDATES:
        if size % candidate.warp == 0 and torch.cuda.get_device_capability(device) >= candidate.least_capability:
            kernels = of_candidate(candidate)
            if agrees(kernels, device, dtype, heads, kept, size):
                return kernels
    return None


def of_candidate(candidate: attention_cuda.Candidate) -> Kernels:
    """The functions of `attention_cuda` with this candidate's."""
    functions: tuple[Any, ...] = (attention_cuda.causal, attention_cuda.causal_backward, attention_cuda.full, attention_cuda.full_backward)
    causal, causal_backward, full, full_backward = (partial(function, candidate) for function in functions)
    return Kernels(candidate.name, causal, causal_backward, full, full_backward, together=True, windows=candidate.windows)


def note(device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> str:
    """A sentence for the user where the first choice is not what computes attention here, or an empty text."""
    if device.type != "cuda":
        return ""
    what = f"attention of {heads} heads of size {size} in {str(dtype).removeprefix('torch.')}"
    kernels = chosen(device, dtype, heads, kept, size)
    if kernels is None:
        return f"no kernel of this GPU for packed rows computes {what} as the definition has it: documents are computed one by one"
    able = [c.name for c in attention_cuda.CANDIDATES if torch.cuda.get_device_capability(device) >= c.least_capability]
    return "" if kernels.name == able[0] else f"{able[0]} does not compute {what} as the definition has it: {kernels.name} is used"


def agrees(kernels: Kernels, device: torch.device, dtype: torch.dtype, heads: int, kept: int, size: int) -> bool:
    """Whether kernels give the definition's values and gradients, on a forest behind a front, and on documents within a window."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, tokens: int) -> Tensor:
        return torch.randn(rows, tokens, size, generator=generator).to(device, dtype).requires_grad_()

    q, k, v, *front = [drawn(rows, tokens) for rows, tokens in ((heads, 155), (kept, 155), (kept, 155), (kept, 5), (kept, 5))]
    shared, alone, scale = forest_of((40, 9, 70, 1, 30, 5), (-1, 0, 1, 0, -1, 4)), forest_of((40, 9, 106)), size**-0.5
    cases: list[tuple[Forest, int | None, list[Tensor]]] = [(shared, None, front), (alone, None, [])]
    cases += [(alone, 20, [])] if kernels.windows else []
    for forest, window, front in cases:
        leaves = [q, k, v, *front]
        # past the hooks of activation recomputation, which would count what is saved here among the model's own
        with torch.enable_grad(), saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            try:
                ours = merged(kernels, q, k, v, forest, [tuple(front)] if front else [], scale, window)
                direction = torch.randn(ours.shape, generator=generator).to(ours)
                found = [ours.detach(), *torch.autograd.grad(ours, leaves, direction)]
            except (RuntimeError, NotImplementedError, TypeError):
                return False
            exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
            fronts = [tuple(exact[3:])] if front else []
            pieces = [along_path(exact[0], exact[1], exact[2], forest, s, fronts, scale, window) for s in forest.filled]
            theirs = torch.cat(pieces)
            wanted = [theirs.detach(), *torch.autograd.grad(theirs, exact, direction.double())]
        if not all((one.double() - other).norm() <= 0.02 * other.norm() for one, other in zip(found, wanted, strict=True)):
            return False
    return True
