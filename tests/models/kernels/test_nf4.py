"""One launch against bitsandbytes, bit for bit."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

from tunesmith.models import nf4
from tunesmith.models.kernels.nf4 import dequantize_into

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments(q, device):
    """What the kernel takes of `Quantized`."""
    moved = q.to(device)
    code = nf4.kernels().create_dynamic_map().to(device) if q.offset is not None else None
    return moved.codes_OI, moved.absmax, nf4.levels().to(device), code, moved.nested_absmax, moved.offset


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (7, 192), (64, 64), (65, 64), (300, 128), (33, 576)], ids=str)
def test_bit_for_bit_what_bitsandbytes_makes(shape, dtype, double, device):
    torch.manual_seed(shape[0])
    weight_OI = torch.randn(shape) * torch.rand(shape[0], 1).mul(6).exp2() * 0.01
    weight_OI[0, 5] = 30.0
    weight_OI[-1, :64] = 0.0
    q = nf4.quantize(weight_OI.to(dtype), double)
    out = torch.full((*shape,), float("nan"), dtype=dtype, device=device)
    dequantize_into(out, *arguments(q, device))
    assert torch.equal(out, nf4.dequantize(q.to(device), shape, dtype))
    assert torch.equal(out.cpu(), nf4.dequantize(q, shape, dtype))


def test_nothing_is_written_outside(device):
    q = nf4.quantize(torch.randn(3, 64), True)
    room = torch.full((5 * 64,), 7.0, device=device)
    dequantize_into(room[64 : 4 * 64], *arguments(q, device))
    assert (room[:64] == 7).all() and (room[4 * 64 :] == 7).all()
    assert torch.equal(room[64 : 4 * 64].view(3, 64), nf4.dequantize(q.to(device), (3, 64), torch.float32))


def test_every_code_and_every_scale(device):
    """All 256 bytes beside all 256 nested codes."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(32)  # 256 blocks of 32 bytes
    absmax = torch.arange(256, dtype=torch.uint8)
    q = nf4.Quantized(codes.view(1, -1), absmax, torch.tensor([0.37]), torch.tensor([0.0123]))
    out = torch.empty(1, 2 * codes.numel(), device=device)
    dequantize_into(out, *arguments(q, device))
    assert torch.equal(out.cpu(), nf4.dequantize(q, (1, 2 * codes.numel()), torch.float32))


def test_what_is_not_known_is_refused(device):
    q = nf4.quantize(torch.randn(2, 64), True)
    codes, absmax, *rest = arguments(q, device)
    with pytest.raises(ValueError, match="float64"):
        dequantize_into(torch.empty(2, 64, dtype=torch.float64, device=device), codes, absmax, *rest)
    with pytest.raises(ValueError, match=r"scales in torch\.float16"):
        dequantize_into(torch.empty(2, 64, device=device), codes, absmax.half(), rest[0])
    for wrong in [(torch.empty(2, 128), codes, absmax, *rest), (torch.empty(2, 64), codes, absmax, rest[0])]:
        with pytest.raises(AssertionError):
            dequantize_into(*wrong)
