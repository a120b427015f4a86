"""Rotary embedding of queries or keys: halves of a head turned by the angles of its token, one pass over memory.

    (a, b) → (a·cos - b·sin, b·cos + a·sin)     back: (a·cos + b·sin, b·cos - a·sin), each sin that of where the number came from

Both products and their sum are rounded to the tensor's dtype one by one, as a class computes them.

Shapes: B rows, H heads, T tokens, E channels of a head, R of which are rotated; D of half of those, padded to a power of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.models import kernels

_TILE = 1024  # numbers of one half in one program: all 8 heads of keys, or a quarter of 32 heads of queries, in heads of 128
_WARPS = 4
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rotate(x_BHTE: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, back: bool) -> Tensor:
    """The rotation, or with `back` its gradient's; channels behind the first R pass. Laid out in memory as x is.

    `cos` and `sin` may be those of one row for all. Raises ValueError for a dtype that the kernel does not know.
    """
    (rows, heads, tokens, channels), size = x_BHTE.shape, cos_BTR.shape[-1]
    if x_BHTE.dtype not in _DTYPES or not x_BHTE.dtype == cos_BTR.dtype == sin_BTR.dtype:
        raise ValueError(f"rotary: {x_BHTE.dtype} with angles in {cos_BTR.dtype} and {sin_BTR.dtype} is not known here")
    assert x_BHTE.stride(-1) == 1 and size % 2 == 0 and size <= channels, (x_BHTE.stride(), size)
    assert cos_BTR.shape == sin_BTR.shape and cos_BTR.shape[1] == tokens and cos_BTR.shape[0] in (1, rows)
    cos_BTR, sin_BTR = cos_BTR.contiguous(), sin_BTR.contiguous()
    y_BHTE = torch.empty_like(x_BHTE)
    if y_BHTE.stride(-1) != 1:  # x has gaps in a layout that cannot be kept
        y_BHTE = torch.empty(x_BHTE.shape, dtype=x_BHTE.dtype, device=x_BHTE.device)
    if x_BHTE.numel() == 0:
        return y_BHTE
    block, behind = triton.next_power_of_2(size // 2), triton.next_power_of_2(max(1, channels - size))
    at_once = max(1, min(triton.next_power_of_2(heads), _TILE // max(block, behind)))
    with kernels.on(x_BHTE.device):
        _rotate[(rows * tokens, triton.cdiv(heads, at_once))](
            x_BHTE, cos_BTR, sin_BTR, y_BHTE, *x_BHTE.stride()[:3], *y_BHTE.stride()[:3], tokens, heads,
            0 if cos_BTR.shape[0] == 1 else tokens * size, size, channels - size, back,
            at_once, block, behind, num_warps=_WARPS,
        )  # fmt: skip
    return y_BHTE


@triton.jit(do_not_specialize=["tokens"])  # another for each batch, and no offset depends on its divisors
def _rotate(
    x_ptr, cos_ptr, sin_ptr, y_ptr, x_row, x_head, x_token, y_row, y_head, y_token, tokens, heads, row_of_angles,
    size: tl.constexpr, rest: tl.constexpr, back: tl.constexpr, H: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    row, token = (tl.program_id(0) // tokens).to(tl.int64), (tl.program_id(0) % tokens).to(tl.int64)  # int64: offsets beyond 2³¹
    head_H = tl.program_id(1) * H + tl.arange(0, H)
    at_D = tl.arange(0, D)
    half: tl.constexpr = size // 2
    angle_D = row * row_of_angles + token * size + at_D
    cos_first_D = tl.load(cos_ptr + angle_D, mask=at_D < half, other=0.0).to(tl.float32)
    cos_second_D = tl.load(cos_ptr + angle_D + half, mask=at_D < half, other=0.0).to(tl.float32)
    sin_first_D = tl.load(sin_ptr + angle_D, mask=at_D < half, other=0.0).to(tl.float32)
    sin_second_D = tl.load(sin_ptr + angle_D + half, mask=at_D < half, other=0.0).to(tl.float32)
    if back:
        sin_first_D, sin_second_D = -sin_second_D, -sin_first_D
    inside_HD = (head_H < heads)[:, None] & (at_D < half)[None, :]
    x_ptr += row * x_row + token * x_token
    y_ptr += row * y_row + token * y_token
    from_HD, to_HD = head_H[:, None] * x_head + at_D[None, :], head_H[:, None] * y_head + at_D[None, :]
    first_HD = tl.load(x_ptr + from_HD, mask=inside_HD, other=0.0)
    second_HD = tl.load(x_ptr + from_HD + half, mask=inside_HD, other=0.0)
    dtype = first_HD.dtype
    wide_first_HD, wide_second_HD = first_HD.to(tl.float32), second_HD.to(tl.float32)
    kept_HD = (wide_first_HD * cos_first_D[None, :]).to(dtype).to(tl.float32)
    crossed_HD = (wide_second_HD * sin_first_D[None, :]).to(dtype).to(tl.float32)
    tl.store(y_ptr + to_HD, (kept_HD - crossed_HD).to(dtype), mask=inside_HD)
    kept_HD = (wide_second_HD * cos_second_D[None, :]).to(dtype).to(tl.float32)
    crossed_HD = (wide_first_HD * sin_second_D[None, :]).to(dtype).to(tl.float32)
    tl.store(y_ptr + to_HD + half, (kept_HD + crossed_HD).to(dtype), mask=inside_HD)
    if rest:
        behind_P = size + tl.arange(0, P)
        inside_HP = (head_H < heads)[:, None] & (behind_P < size + rest)[None, :]
        x_HP = tl.load(x_ptr + head_H[:, None] * x_head + behind_P[None, :], mask=inside_HP, other=0.0)
        tl.store(y_ptr + head_H[:, None] * y_head + behind_P[None, :], x_HP, mask=inside_HP)
