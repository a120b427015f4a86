"""Cross entropy over the learned positions only, from hidden states, without ever holding all logits.

Logits are made for a few hundred positions at a time within a fixed budget; the gradient is made in the same pass. With a
frozen head that is two matmuls a position (logits, and back to hidden states) and no third. With a trained head its own
gradient is added up in fp32, chunk by chunk, into a buffer of the caller's.

Shapes: N learned positions, C channels, V vocabulary, R rows of a chunk.
"""

from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.head import Head
from tunesmith.models.score import Score
from tunesmith.step.placed_head import placed_loss

_BUDGET_BYTES = 64 * 1024**2  # fp32 logits of one chunk, at most
_FEW_BYTES = 16 * 1024**2  # what is enough on a CPU: products are as fast as with more, and two or three such chunks stand at once
_FEW_ROWS = 64  # but with fewer positions than this a product waits for the head's matrix to be read
_BUDGET_BYTES_GPU = 512 * 1024**2
META_STANDS_FOR: ContextVar[str] = ContextVar("META_STANDS_FOR", default="cpu")  # the device type that a rehearsal is for


def learned_loss(h_NC: Tensor, targets_N: Tensor, head: Head, scale: float = 1.0, head_gradient_VC: Tensor | None = None) -> Tensor:
    """scale · Σ -log p(target), a scalar in fp32.

    `head_gradient_VC` (fp32), where given, receives scale · dloss/dW of the head, ADDED during this call when gradients are
    enabled: the caller must not multiply the returned loss before `backward`. A trained bias gets its gradient in `backward`.
    """
    if h_NC.shape[0] == 0:
        return h_NC.sum().float() * 0.0
    if head.placed is not None:
        return placed_loss(h_NC, targets_N, head, scale, chunk_rows(head.weight_VC.shape[0], h_NC.device.type))
    return _LearnedLoss.apply(h_NC, head.bias_V, targets_N, head, scale, head_gradient_VC if torch.is_grad_enabled() else None)


class _LearnedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_NC: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: Head, scale: float, head_gradient_VC: Tensor | None
    ) -> Tensor:
        wants_gradient = any(ctx.needs_input_grad) or head_gradient_VC is not None
        dh_NC = torch.empty_like(h_NC) if ctx.needs_input_grad[0] else None
        dbias_V = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=h_NC.device)
        rows = chunk_rows(head.weight_VC.shape[0], h_NC.device.type, trained=head_gradient_VC is not None)
        factor = head.scale * scale  # laid on what the products give: a pass over the logits themselves costs more than all of that
        for begin in range(0, h_NC.shape[0], rows):
            h_RC = h_NC[begin : begin + rows]
            loss, d_RV = (_by_kernel if head.in_place else _plain)(h_RC, targets_N[begin : begin + rows], head, wants_gradient)
            total += loss
            if d_RV is None:
                continue
            if dbias_V is not None:
                dbias_V.add_(d_RV.sum(0, dtype=torch.float32), alpha=factor)
            d_RV = d_RV.to(h_NC.dtype)
            if dh_NC is not None:
                torch.mm(d_RV, head.weight_VC, out=dh_NC[begin : begin + rows])
            if head_gradient_VC is not None:
                if d_RV.dtype == torch.float32:
                    head_gradient_VC.addmm_(d_RV.T, h_RC, alpha=factor)
                else:
                    head_gradient_VC.add_(d_RV.T @ h_RC, alpha=factor)
        if dh_NC is not None:
            dh_NC.mul_(factor)
        ctx.gradients = (dh_NC, None if dbias_V is None or bias_V is None else dbias_V.to(bias_V.dtype))
        return total * scale

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dh_NC, dbias_V = (None if d is None else d.mul_(g.to(d.dtype)) for d in ctx.gradients)
        return dh_NC, dbias_V, None, None, None, None


def _plain(h_RC: Tensor, targets_R: Tensor, head: Head, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Σ -log p(target) of a chunk, and its gradient by scale · (h·Wᵀ + b), both in fp32."""
    logits_RV = head.logits(h_RC)
    logp_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float32)
    loss = -logp_RV.gather(1, targets_R[:, None]).sum()
    if not wants_gradient:
        return loss, None
    d_RV = logp_RV.exp_()
    d_RV.scatter_add_(1, targets_R[:, None], torch.full((len(targets_R), 1), -1.0, device=h_RC.device))
    if head.softcap is not None:
        d_RV.mul_(1 - (logits_RV.float() / head.softcap).square_())
    return loss, d_RV


def _by_kernel(h_RC: Tensor, targets_R: Tensor, head: Head, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The same on a GPU: the gradient in the logits' dtype and memory, rounded once, as it is below for the products."""
    from tunesmith.models.kernels.cross_entropy import cross_entropy_

    logits_RV = F.linear(h_RC, head.weight_VC, head.bias_V)
    loss = cross_entropy_(logits_RV, targets_R, 1.0, head.scale, head.softcap, wants_gradient)
    return loss, logits_RV if wants_gradient else None


def chunk_rows(vocabulary: int, device_type: str, trained: bool = False) -> int:
    """Positions whose fp32 logits fit the budget, a multiple of 16, at least 16. With a `trained` head each chunk goes over the head's
    gradient once more: as many as the budget holds."""
    kind, each = META_STANDS_FOR.get() if device_type == "meta" else device_type, 4 * vocabulary
    if kind != "cpu":
        return max(16, _BUDGET_BYTES_GPU // each // 16 * 16)
    most = _BUDGET_BYTES // each
    return max(16, (most if trained else min(most, max(_FEW_BYTES // each, _FEW_ROWS))) // 16 * 16)


def loss_of_logits(logits_TV: Tensor, hidden_N: Tensor, targets_N: Tensor, scale: float = 1.0) -> Tensor:
    """The same number from a class's own logits, where our head may not be used."""
    logp_NV = torch.log_softmax(logits_TV[hidden_N].float(), dim=-1)
    return -logp_NV.gather(1, targets_N[:, None]).sum() * scale


def label_loss(h_NC: Tensor, targets_N: Tensor, score: Score, scale: float = 1.0) -> Tensor:
    """scale · Σ weight(label) · -log p(label) under a task's head, a scalar in fp32; its own tensors get their gradients in `backward`.

    Labels are few: their logits need no chunks.
    """
    if h_NC.shape[0] == 0:
        return h_NC.sum().float() * 0.0
    weights_L = None if score.class_weights_L is None else score.class_weights_L.to(h_NC.device)
    return F.cross_entropy(score(h_NC), targets_N, weight=weights_L, reduction="sum") * scale
