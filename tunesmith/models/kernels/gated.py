"""act(gate)·up, what stands between the two halves of a gated MLP: one pass over memory forward and one backward.

The roundings are those of the plain computation: the activation is rounded to the tensors' dtype before it meets `up`, and
dy·up before it meets the derivative. Backward makes the activation again instead of keeping it.

    silu: g·σ(g)      gelu_tanh: g·σ(2u), u = √(2/π)·(g + 0.044715·g³), which is g/2·(1 + tanh u)      gelu: g/2·(1 + erf(g/√2))

Shapes: N rows, I channels between the halves, B channels of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.models import kernels

_BLOCK = 2048  # channels of one program
_WARPS = 8  # 8 values a thread: one load of 16 bytes in bf16
_KINDS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gated_forward(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """act(gate)·up for two tensors [..., I] of one dtype, which may be the halves of one tensor; contiguous, in their dtype.

    Raises ValueError for a kind or a dtype that the kernel does not know.
    """
    number = _check(kind, gate, up)
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate_NI, up_NI = _rows(gate), _rows(up)
    if y.numel():
        with kernels.on(gate.device):
            _forward[_grid(gate_NI)](
                gate_NI, up_NI, y, gate_NI.stride(0), up_NI.stride(0), gate_NI.shape[1], number, _block(gate_NI), num_warps=_WARPS
            )
    return y


def gated_backward(dy: Tensor, gate: Tensor, up: Tensor, kind: str, into: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(dgate, dup), each like its own; the halves of one tensor [..., 2·I] where `gate` and `up` are. Written `into` two tensors
    that lie alike, where these are given.

    Raises ValueError for a kind or a dtype that the kernel does not know.
    """
    dgate, dup = _like_halves(gate, up) if into is None else into
    number = _check(kind, gate, up, dy, dgate, dup)
    gate_NI, up_NI, dy_NI, dgate_NI, dup_NI = (_rows(tensor) for tensor in (gate, up, dy, dgate, dup))
    assert dgate_NI.stride() == dup_NI.stride()
    if gate.numel():
        with kernels.on(gate.device):
            _backward[_grid(gate_NI)](
                dy_NI, gate_NI, up_NI, dgate_NI, dup_NI, dy_NI.stride(0), gate_NI.stride(0), up_NI.stride(0), dgate_NI.stride(0),
                gate_NI.shape[1], number, _block(gate_NI), num_warps=_WARPS,
            )  # fmt: skip
    return dgate, dup


def _check(kind: str, gate: Tensor, *others: Tensor) -> int:
    if kind not in _KINDS:
        raise ValueError(f"gated: {kind!r} is not known here, {', '.join(_KINDS)} are")
    if gate.dtype not in _DTYPES or any(other.dtype != gate.dtype for other in others):
        raise ValueError(f"gated: {', '.join(str(tensor.dtype) for tensor in (gate, *others))} together are not known here")
    assert all(other.shape == gate.shape and other.device == gate.device for other in others)
    return _KINDS[kind]


def _rows(tensor: Tensor) -> Tensor:
    """[..., I] as [N, I] without a copy: the halves of one tensor are rows that lie apart."""
    assert tensor.stride(-1) == 1, tensor.stride()
    return tensor.view(-1, tensor.shape[-1])


def _like_halves(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Where both are halves of one tensor their gradients are too: what made that tensor needs no concatenation."""
    inner = gate.shape[-1]
    beside = up.data_ptr() == gate.data_ptr() + inner * gate.element_size()
    if not (beside and gate.dim() > 1 and gate.stride(-2) == up.stride(-2) == 2 * inner):
        return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device), torch.empty(up.shape, dtype=up.dtype, device=up.device)
    both = torch.empty(*gate.shape[:-1], 2 * inner, dtype=gate.dtype, device=gate.device)
    return both[..., :inner], both[..., inner:]


def _grid(gate_NI: Tensor) -> tuple[int, int]:
    return gate_NI.shape[0], triton.cdiv(gate_NI.shape[1], _block(gate_NI))


def _block(gate_NI: Tensor) -> int:
    return min(_BLOCK, triton.next_power_of_2(gate_NI.shape[1]))


@triton.jit
def _activation(gate, kind: tl.constexpr):
    """act(gate) and its derivative, in fp32."""
    if kind == 0:
        s = tl.sigmoid(gate)
        return gate * s, s * (1 + gate * (1 - s))
    elif kind == 1:
        square = gate * gate
        s = tl.sigmoid(1.5957691216057308 * gate * (1 + 0.044715 * square))  # 2·√(2/π)
        return gate * s, s + gate * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * square)
    else:
        below = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
        return gate * below, below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)  # 1/√(2π)


@triton.jit
def _forward(gate_ptr, up_ptr, y_ptr, gate_stride, up_stride, inner, kind: tl.constexpr, B: tl.constexpr):
    row, at_B = tl.program_id(0).to(tl.int64), tl.program_id(1) * B + tl.arange(0, B)  # int64: the offset of a value may exceed 2³¹
    inside_B = at_B < inner
    gate_B = tl.load(gate_ptr + row * gate_stride + at_B, mask=inside_B, other=0.0)
    up_B = tl.load(up_ptr + row * up_stride + at_B, mask=inside_B, other=0.0).to(tl.float32)
    act_B, _ = _activation(gate_B.to(tl.float32), kind)
    act_B = act_B.to(gate_B.dtype).to(tl.float32)
    tl.store(y_ptr + row * inner + at_B, (act_B * up_B).to(gate_B.dtype), mask=inside_B)


@triton.jit
def _backward(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, dy_stride, gate_stride, up_stride, d_stride, inner,
    kind: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    row, at_B = tl.program_id(0).to(tl.int64), tl.program_id(1) * B + tl.arange(0, B)
    inside_B = at_B < inner
    gate_B = tl.load(gate_ptr + row * gate_stride + at_B, mask=inside_B, other=0.0)
    up_B = tl.load(up_ptr + row * up_stride + at_B, mask=inside_B, other=0.0).to(tl.float32)
    dy_B = tl.load(dy_ptr + row * dy_stride + at_B, mask=inside_B, other=0.0).to(tl.float32)
    act_B, slope_B = _activation(gate_B.to(tl.float32), kind)
    dup_B = dy_B * act_B.to(gate_B.dtype).to(tl.float32)
    dgate_B = (dy_B * up_B).to(gate_B.dtype).to(tl.float32) * slope_B
    tl.store(dgate_ptr + row * d_stride + at_B, dgate_B.to(gate_B.dtype), mask=inside_B)
    tl.store(dup_ptr + row * d_stride + at_B, dup_B.to(gate_B.dtype), mask=inside_B)
