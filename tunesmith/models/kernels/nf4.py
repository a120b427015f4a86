"""NF4 codes and their scales to a matrix in one launch: what is otherwise a launch for the scales, one for the offset, and one more.

    w[i] = level[code[i]] · a[i/64]     a[b] = nested code[absmax[b]] · nested absmax[b/256] + offset, or absmax[b] itself

Bit for bit what bitsandbytes makes of the same codes: products and sums are rounded one by one (a fused multiply-add would round
a[b] once), and the value once to the dtype that is asked for.

Shapes: n weights, n/2 bytes of codes, the first of two weights in the upper half of a byte; K blocks of 64 weights of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.models import kernels

_BLOCKS = 64  # blocks of one program: 4,096 weights, 2 KB of codes
_WARPS = 4  # 32 weights a thread: its codes are one load of 16 bytes
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dequantize_into(
    out: Tensor,
    codes: Tensor,
    absmax: Tensor,
    levels: Tensor,
    nested_code: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    offset: Tensor | None = None,
) -> None:
    """Write the matrix that `codes` [n/2] stand for into `out` [n], of any shape, contiguous.

    `levels` are the 16 values in fp32. `absmax` [n/64] is fp32, or uint8 with `nested_code` [256], `nested_absmax` [n/64/256,
    rounded up] and `offset` [1], all fp32. Raises ValueError for a dtype that the kernel does not know.
    """
    scales, double = [levels, nested_code, nested_absmax, offset], absmax.dtype == torch.uint8
    assert out.is_contiguous() and codes.is_contiguous() and codes.dtype == torch.uint8 and codes.numel() * 2 == out.numel()
    assert absmax.is_contiguous() and absmax.numel() * 64 == out.numel() and levels.numel() == 16
    assert all((tensor is not None) == double for tensor in scales[1:])
    assert all(tensor is None or (tensor.dtype == torch.float32 and tensor.is_contiguous()) for tensor in scales)
    assert nested_absmax is None or (nested_absmax.numel() == -(-absmax.numel() // 256) and nested_code.numel() == 256)  # type: ignore[union-attr]
    if out.dtype not in _DTYPES or (not double and absmax.dtype != torch.float32):
        raise ValueError(f"nf4: {out.dtype} from scales in {absmax.dtype} is not known here")
    blocks = absmax.numel()
    if blocks == 0:
        return
    with kernels.on(out.device):
        _dequantize[(triton.cdiv(blocks, _BLOCKS),)](
            codes, absmax, levels, nested_code if double else levels, nested_absmax if double else levels, offset if double else levels,
            out, blocks, double, _BLOCKS, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["blocks"])  # or each shape of a matrix might compile again
def _dequantize(
    codes_ptr, absmax_ptr, levels_ptr, nested_code_ptr, nested_absmax_ptr, offset_ptr, out_ptr, blocks,
    double: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    block_K = tl.program_id(0).to(tl.int64) * K + tl.arange(0, K)  # int64: a head of 256k words by 16k channels has 2³² weights
    inside_K = block_K < blocks
    absmax_K = tl.load(absmax_ptr + block_K, mask=inside_K, other=0)
    if double:
        absmax_K = tl.load(nested_code_ptr + absmax_K.to(tl.int32))
        absmax_K = absmax_K * tl.load(nested_absmax_ptr + block_K // 256, mask=inside_K, other=0.0)
        absmax_K = absmax_K + tl.load(offset_ptr)
    codes_KH = tl.load(codes_ptr + block_K[:, None] * 32 + tl.arange(0, 32)[None, :], mask=inside_K[:, None], other=0).to(tl.int32)
    upper_KH = tl.load(levels_ptr + (codes_KH >> 4)) * absmax_K[:, None]  # 16 levels are one line of the L1 cache
    lower_KH = tl.load(levels_ptr + (codes_KH & 15)) * absmax_K[:, None]
    value_KB = tl.interleave(upper_KH, lower_KH).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + block_K[:, None] * 64 + tl.arange(0, 64)[None, :], value_KB, mask=inside_K[:, None])
