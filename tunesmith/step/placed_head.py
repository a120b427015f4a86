"""Cross entropy where something stands at the head: trained rows of it, or a low-rank update.

As in `loss.py` logits are made for a chunk of positions at a time and the gradient is made in the same pass. What stands there
is differentiated by autograd within its chunk: the logits are made once, and no chunk outlives its gradient.

Shapes: N learned positions, C channels, R rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.head import Head


def placed_loss(h_NC: Tensor, targets_N: Tensor, head: Head, scale: float, rows: int) -> Tensor:
    """scale · Σ -log p(target), a scalar in fp32, `rows` positions at a time. `backward` reaches the hidden states and what is
    trained at the head."""
    loss: Tensor = _PlacedLoss.apply(h_NC, targets_N, head, scale, rows, *head.trained)
    return loss


class _PlacedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_NC: Tensor, targets_N: Tensor, head: Head, scale: float, rows: int, *trained: nn.Parameter) -> Tensor:
        wanted = [tensor for tensor, needed in zip(trained, ctx.needs_input_grad[5:], strict=True) if needed]
        dh_NC = torch.empty_like(h_NC) if ctx.needs_input_grad[0] else None
        sums = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in wanted]
        total = torch.zeros((), dtype=torch.float32, device=h_NC.device)
        for begin in range(0, h_NC.shape[0], rows):
            with torch.set_grad_enabled(any(ctx.needs_input_grad)):
                h_RC = h_NC[begin : begin + rows].detach().requires_grad_(dh_NC is not None)
                logits_RV = head.logits(h_RC).float()
                loss = nn.functional.cross_entropy(logits_RV, targets_N[begin : begin + rows], reduction="sum") * scale
            total += loss.detach()
            leaves = [*([h_RC] if dh_NC is not None else []), *wanted]
            if not leaves:
                continue
            found = list(torch.autograd.grad(loss, leaves))
            if dh_NC is not None:
                dh_NC[begin : begin + rows] = found.pop(0)
            for one, more in zip(sums, found, strict=True):
                one += more
        ctx.gradients = dh_NC, [one.to(tensor.dtype) for one, tensor in zip(sums, wanted, strict=True)]
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dh_NC, found = ctx.gradients
        rest = iter(found)
        trained = [next(rest).mul_(g) if needed else None for needed in ctx.needs_input_grad[5:]]
        return None if dh_NC is None else dh_NC.mul_(g.to(dh_NC.dtype)), None, None, None, None, *trained
