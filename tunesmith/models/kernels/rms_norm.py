"""RMSNorm: y = w·x/√(mean(x²) + eps), one pass over memory forward and one backward.

The roundings are those of the class that is replaced, and classes differ: LLaMA's rounds the normalised value to x's dtype
before the weight (`cast_first`), OLMo 2's rounds once at the end, Gemma's does so too and multiplies by 1 + w (`one_plus`).

    n = x/√(mean(x²) + eps)     dn = dy·w     dx = (dn - n·mean(dn·n))/√(mean(x²) + eps)     dw = Σ dy·n over rows

Shapes: N rows, C channels; R rows and B channels (the next power of two) of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.models import kernels

_TILE = 2048  # values of one program: narrow rows (the norms of query and key heads) share one, or launching would be the cost
_LARGEST = 32768  # channels: a row stands in registers as a whole, 32 values for each of 1,024 threads
_PER_THREAD = 16  # values of a thread, before warps are spent: enough loads in flight, and registers for x, dy and w
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rms_norm_forward(x_NC: Tensor, weight_C: Tensor, eps: float, one_plus: bool, cast_first: bool) -> tuple[Tensor, Tensor]:
    """(y_NC, rstd_N): the norm of each row, and the reciprocal root in fp32, which the backward pass takes.

    y has x's dtype; with `cast_first` the dtype that weight · x would have. Raises ValueError for what the kernel does not know.
    """
    _check(x_NC, weight_C, one_plus, cast_first)
    (rows, channels), dtype = x_NC.shape, torch.promote_types(x_NC.dtype, weight_C.dtype) if cast_first else x_NC.dtype
    y_NC, rstd_N = torch.empty_like(x_NC, dtype=dtype), torch.empty(rows, dtype=torch.float32, device=x_NC.device)
    if x_NC.numel() == 0:
        return y_NC, rstd_N
    block, tile, warps = _launch(channels)
    with kernels.on(x_NC.device):
        _forward[(triton.cdiv(rows, tile),)](
            x_NC, weight_C, y_NC, rstd_N, rows, channels, eps, one_plus, cast_first, tile, block, num_warps=warps
        )
    return y_NC, rstd_N


def rms_norm_backward(
    dy_NC: Tensor, x_NC: Tensor, rstd_N: Tensor, weight_C: Tensor, one_plus: bool, cast_first: bool, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """(dx_NC, dweight_C or None) in the dtypes of x and of the weight; sums in fp32, in the same order on every run.

    Raises ValueError for what the kernel does not know.
    """
    _check(x_NC, weight_C, one_plus, cast_first)
    assert dy_NC.is_contiguous() and dy_NC.shape == x_NC.shape and rstd_N.shape == x_NC.shape[:1] and rstd_N.dtype == torch.float32
    if dy_NC.dtype not in _DTYPES:
        raise ValueError(f"rms_norm: a gradient in {dy_NC.dtype} is not known here")
    rows, channels = x_NC.shape
    dx_NC = torch.empty_like(x_NC)
    if x_NC.numel() == 0:
        return dx_NC, torch.zeros_like(weight_C) if needs_weight else None
    block, tile, warps = _launch(channels)
    tiles = triton.cdiv(rows, tile)
    programs = min(tiles, _processors(x_NC.device)) if needs_weight else tiles
    sums_PC = torch.empty(programs, channels, dtype=torch.float32, device=x_NC.device) if needs_weight else rstd_N
    with kernels.on(x_NC.device):
        _backward[(programs,)](
            dy_NC, x_NC, rstd_N, weight_C, dx_NC, sums_PC, rows, channels, triton.cdiv(tiles, programs),
            one_plus, cast_first, needs_weight, tile, block, num_warps=warps,
        )  # fmt: skip
    return dx_NC, sums_PC.sum(0).to(weight_C.dtype) if needs_weight else None


def _check(x_NC: Tensor, weight_C: Tensor, one_plus: bool, cast_first: bool) -> None:
    assert x_NC.is_contiguous() and weight_C.is_contiguous() and weight_C.shape == x_NC.shape[1:], (x_NC.shape, weight_C.shape)
    assert x_NC.device == weight_C.device
    if x_NC.dtype not in _DTYPES or weight_C.dtype not in _DTYPES:
        raise ValueError(f"rms_norm: x in {x_NC.dtype} and a weight in {weight_C.dtype} are not known here")
    if one_plus and cast_first:
        raise ValueError("rms_norm: no class multiplies a rounded value by 1 + w, so in which dtype it would add is not known")
    if x_NC.shape[1] > _LARGEST:
        raise ValueError(f"rms_norm: {x_NC.shape[1]} channels, at most {_LARGEST} stand in registers")


def _launch(channels: int) -> tuple[int, int, int]:
    """Channels of a block, rows of a program, warps."""
    block = triton.next_power_of_2(channels)
    tile = max(1, _TILE // block)
    return block, tile, min(32, max(1, tile * block // (32 * _PER_THREAD)))


def _processors(device: torch.device) -> int:
    """Programs that each add up one part of the weight's gradient: one for a multiprocessor, and a few for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@triton.jit(do_not_specialize=["rows"])  # it changes with each batch: specialised, it would compile again
def _forward(
    x_ptr, weight_ptr, y_ptr, rstd_ptr, rows, channels, eps,
    one_plus: tl.constexpr, cast_first: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # int64: the offset of a value may exceed 2³¹
    channel_B = tl.arange(0, B)
    inside_RB = (row_R < rows)[:, None] & (channel_B < channels)[None, :]
    at_RB = row_R[:, None] * channels + channel_B[None, :]
    x_RB = tl.load(x_ptr + at_RB, mask=inside_RB, other=0.0)
    weight_B = tl.load(weight_ptr + channel_B, mask=channel_B < channels, other=0.0).to(tl.float32)
    wide_RB = x_RB.to(tl.float32)
    rstd_R = tl.rsqrt(tl.sum(wide_RB * wide_RB, 1) / channels + eps)
    n_RB = wide_RB * rstd_R[:, None]
    if cast_first:
        n_RB = n_RB.to(x_RB.dtype).to(tl.float32)
    if one_plus:
        weight_B += 1.0
    tl.store(y_ptr + at_RB, (n_RB * weight_B[None, :]).to(y_ptr.dtype.element_ty), mask=inside_RB)
    tl.store(rstd_ptr + row_R, rstd_R, mask=row_R < rows)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _backward(
    dy_ptr, x_ptr, rstd_ptr, weight_ptr, dx_ptr, sums_ptr, rows, channels, tiles,
    one_plus: tl.constexpr, cast_first: tl.constexpr, needs_weight: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    channel_B = tl.arange(0, B)
    weight_B = tl.load(weight_ptr + channel_B, mask=channel_B < channels, other=0.0).to(tl.float32)
    if one_plus:
        weight_B += 1.0
    sum_B = tl.zeros((B,), tl.float32)
    for tile in range(tiles):  # neighbouring rows: the order of the sums depends on the shape and the device alone
        row_R = (tl.program_id(0).to(tl.int64) * tiles + tile) * R + tl.arange(0, R)
        inside_RB = (row_R < rows)[:, None] & (channel_B < channels)[None, :]
        at_RB = row_R[:, None] * channels + channel_B[None, :]
        x_RB = tl.load(x_ptr + at_RB, mask=inside_RB, other=0.0)
        dy_RB = tl.load(dy_ptr + at_RB, mask=inside_RB, other=0.0).to(tl.float32)
        rstd_R = tl.load(rstd_ptr + row_R, mask=row_R < rows, other=0.0)
        n_RB = x_RB.to(tl.float32) * rstd_R[:, None]
        dn_RB = dy_RB * weight_B[None, :]
        mean_R = tl.sum(dn_RB * n_RB, 1) / channels
        dx_RB = (dn_RB - n_RB * mean_R[:, None]) * rstd_R[:, None]
        tl.store(dx_ptr + at_RB, dx_RB.to(dx_ptr.dtype.element_ty), mask=inside_RB)
        if needs_weight:
            if cast_first:
                n_RB = n_RB.to(x_RB.dtype).to(tl.float32)
            sum_B += tl.sum(dy_RB * n_RB, 0)
    if needs_weight:
        tl.store(sums_ptr + tl.program_id(0).to(tl.int64) * channels + channel_B, sum_B, mask=channel_B < channels)
