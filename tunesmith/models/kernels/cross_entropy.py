"""Cross entropy of a chunk of logits, whose gradient takes their place: no fp32 copy of them, no softmax beside them.

A program owns a row and reads it twice: once for the largest logit and the sum of exponentials, both carried along in fp32,
once to write p - [v = target] where the logit stood. Logit scale and soft-cap are applied on the way:

    z = cap·tanh(s·x/cap)     loss = log Σ exp(z) - z[target]     dx = (exp(z)/Σ - [v = target])·(1 - (z/cap)²)

The factor s of the chain belongs to whoever multiplies the gradient on: it is the same for every logit.

Shapes: R rows of the chunk, V vocabulary; B logits of one block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.models import kernels

_BLOCK = 8192  # logits in flight of one row: 32 KB in fp32, a quarter of the registers of a multiprocessor
_WARPS = 16  # 16 logits a thread
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cross_entropy_(
    logits_RV: Tensor,
    targets_R: Tensor,
    scale: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    gradient: bool = True,
) -> Tensor:
    """Σ -log p(target) of the chunk, a scalar in fp32 on the device; nothing waits for it.

    With `gradient` the logits are overwritten with scale·(p - [v = target])·(1 - (z/cap)²) in their own dtype. A target outside
    the vocabulary makes the loss NaN, never a number. Raises ValueError for a dtype that the kernel does not know.
    """
    assert logits_RV.is_contiguous() and logits_RV.dim() == 2 and targets_R.shape == logits_RV.shape[:1]
    assert targets_R.is_contiguous() and targets_R.device == logits_RV.device
    if logits_RV.dtype not in _DTYPES or targets_R.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"cross_entropy: logits in {logits_RV.dtype} with targets in {targets_R.dtype} are not known here")
    if logits_RV.dtype == torch.float16 and gradient and not 1e-2 < scale < 1e2:
        raise ValueError(f"cross_entropy: a gradient scaled by {scale} leaves the range of float16")
    (rows, vocabulary), capped = logits_RV.shape, softcap is not None
    loss_R = torch.empty(rows, dtype=torch.float32, device=logits_RV.device)
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(vocabulary))
        with kernels.on(logits_RV.device):
            _rows[(rows,)](
                logits_RV, targets_R, loss_R, vocabulary, scale, logit_scale, softcap or 1.0, capped, gradient, block, num_warps=_WARPS
            )
    return loss_R.sum()  # in the same order on every run, as no atomic sum would be


@triton.jit
def _z(x_B, logit_scale, cap, capped: tl.constexpr):
    z_B = x_B.to(tl.float32) * logit_scale
    if capped:
        z_B = cap * (2 * tl.sigmoid(2 * z_B / cap) - 1)  # tanh
    return z_B


@triton.jit
def _rows(
    logits_ptr, targets_ptr, loss_ptr, vocabulary, scale, logit_scale, cap,
    capped: tl.constexpr, gradient: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # int64: rows times vocabulary may exceed 2³¹
    logits_ptr += row * vocabulary
    target = tl.load(targets_ptr + row)
    at_B = tl.arange(0, B)
    # each lane carries its own largest and sum: one reduction at the end instead of one a block
    largest_B = tl.full((B,), float("-inf"), tl.float32)
    sum_B = tl.zeros((B,), tl.float32)
    for begin in range(0, vocabulary, B):
        x_B = tl.load(logits_ptr + begin + at_B, mask=begin + at_B < vocabulary, other=float("-inf"))
        z_B = _z(x_B, logit_scale, cap, capped)
        z_B = tl.where(begin + at_B < vocabulary, z_B, float("-inf"))  # a cap makes a number of -inf
        higher_B = tl.maximum(largest_B, z_B)
        settled_B = tl.where(higher_B == float("-inf"), 0.0, higher_B)  # -inf less -inf is NaN
        sum_B = sum_B * tl.exp(largest_B - settled_B) + tl.exp(z_B - settled_B)
        largest_B = higher_B
    largest = tl.max(largest_B, 0)
    total = tl.sum(sum_B * tl.exp(largest_B - largest), 0)
    inside = (target >= 0) & (target < vocabulary)
    z_target = _z(tl.load(logits_ptr + target, mask=inside, other=0.0), logit_scale, cap, capped)
    loss = tl.log(total) + (largest - z_target)  # large logits cancel before a small logarithm is added
    tl.store(loss_ptr + row, tl.where(inside, loss, float("nan")))
    if gradient:
        for begin in range(0, vocabulary, B):
            v_B = begin + at_B
            x_B = tl.load(logits_ptr + v_B, mask=v_B < vocabulary, other=0.0)
            z_B = _z(x_B, logit_scale, cap, capped)
            d_B = tl.exp(z_B - largest) / total - tl.where(v_B == target, 1.0, 0.0)
            if capped:
                d_B = d_B * (1 - (z_B / cap) * (z_B / cap))
            tl.store(logits_ptr + v_B, (d_B * scale).to(x_B.dtype), mask=v_B < vocabulary)
