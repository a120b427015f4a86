"""RMSNorm through the kernel against the formula under autograd, in every order of roundings."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

from tunesmith.models.kernels import rms_norm as kernel

SHAPES = [(1, 5), (3, 576), (70, 64), (5, 2049), (2, 4096)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ORDERS = {"llama": (False, True), "olmo2": (False, False), "gemma": (True, False)}


def plain(x_NC: Tensor, weight_C: Tensor, eps: float, one_plus: bool, cast_first: bool) -> Tensor:
    n_NC = x_NC.float() * torch.rsqrt(x_NC.float().square().mean(-1, keepdim=True) + eps)
    if cast_first:
        return weight_C * n_NC.to(x_NC.dtype)
    return (n_NC * (1 + weight_C.float() if one_plus else weight_C.float())).to(x_NC.dtype)


def backward(*arguments) -> tuple[Tensor, Any]:
    return kernel.rms_norm_backward(*arguments)


def drawn(shape, dtype, weight_dtype, device):
    torch.manual_seed(shape[0])
    x_NC = (torch.randn(shape) * torch.rand(shape[0], 1).mul(8).exp2()).to(device, dtype)
    return x_NC, torch.randn(shape[1]).to(device, weight_dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_of_the_formula(shape, order, dtype, device):
    x_NC, weight_C = drawn(shape, dtype, dtype, device)
    y_NC, rstd_N = kernel.rms_norm_forward(x_NC, weight_C, 1e-5, *ORDERS[order])
    expected = plain(x_NC, weight_C, 1e-5, *ORDERS[order])
    assert y_NC.dtype == expected.dtype
    torch.testing.assert_close(rstd_N, torch.rsqrt(x_NC.float().square().mean(-1) + 1e-5), rtol=1e-6, atol=0)
    step = torch.finfo(dtype).eps  # a value at a tie may fall either way: then they are neighbours, and they are few
    torch.testing.assert_close(y_NC, expected, rtol=2e-6 if dtype == torch.float32 else 2 * step, atol=1e-6)
    assert dtype == torch.float32 or (y_NC != expected).float().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("needs_weight", [True, False])
def test_gradients_are_those_of_autograd(shape, order, dtype, needs_weight, device):
    x_NC, weight_C = drawn(shape, dtype, dtype, device)
    dy_NC = torch.randn(shape, device=device).to(dtype)
    _, rstd_N = kernel.rms_norm_forward(x_NC, weight_C, 1e-5, *ORDERS[order])
    dx_NC, dweight_C = backward(dy_NC, x_NC, rstd_N, weight_C, *ORDERS[order], needs_weight)
    x, weight = x_NC.float().requires_grad_(), weight_C.float().requires_grad_()
    plain(x, weight, 1e-5, *ORDERS[order]).backward(dy_NC.float())
    assert dx_NC.dtype == dtype and (dweight_C is None) != needs_weight
    close = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for ours, theirs in [(dx_NC, x.grad), *([(dweight_C, weight.grad)] if needs_weight else [])]:
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=close, atol=close * theirs.abs().max().item())


def test_an_fp32_weight_makes_fp32_as_the_class_does(device):
    x_NC, weight_C = drawn((4, 96), torch.bfloat16, torch.float32, device)
    y_NC, rstd_N = kernel.rms_norm_forward(x_NC, weight_C, 1e-6, False, True)
    assert y_NC.dtype == torch.float32
    torch.testing.assert_close(y_NC, plain(x_NC, weight_C, 1e-6, False, True))
    dx_NC, dweight_C = backward(torch.randn_like(y_NC), x_NC, rstd_N, weight_C, False, True, True)
    assert (dx_NC.dtype, dweight_C.dtype) == (torch.bfloat16, torch.float32)
    y_NC, _ = kernel.rms_norm_forward(x_NC, weight_C, 1e-6, True, False)
    assert y_NC.dtype == torch.bfloat16


def test_no_rows_and_rows_of_zeros(device):
    weight_C = torch.ones(8, device=device)
    y_NC, rstd_N = kernel.rms_norm_forward(torch.zeros(0, 8, device=device), weight_C, 1e-5, False, True)
    assert y_NC.shape == (0, 8) and rstd_N.shape == (0,)
    dx_NC, dweight_C = backward(y_NC, y_NC, rstd_N, weight_C, False, True, True)
    assert dx_NC.shape == (0, 8) and dweight_C.tolist() == [0] * 8
    y_NC, rstd_N = kernel.rms_norm_forward(torch.zeros(3, 8, device=device), weight_C, 1e-4, False, True)
    assert y_NC.abs().max() == 0
    torch.testing.assert_close(rstd_N, torch.full((3,), 100.0, device=device))


def test_what_is_not_known_is_refused(device):
    x_NC, weight_C = drawn((2, 8), torch.float32, torch.float32, device)
    with pytest.raises(ValueError, match="float64"):
        kernel.rms_norm_forward(x_NC.double(), weight_C, 1e-5, False, False)
    with pytest.raises(ValueError, match=r"1 \+ w"):
        kernel.rms_norm_forward(x_NC, weight_C, 1e-5, True, True)
    with pytest.raises(ValueError, match="40000 channels"):
        kernel.rms_norm_forward(torch.zeros(1, 40000, device=device), torch.zeros(40000, device=device), 1e-5, False, False)
    with pytest.raises(AssertionError):
        kernel.rms_norm_forward(x_NC.repeat(1, 2)[:, ::2], weight_C, 1e-5, False, False)
    with pytest.raises(AssertionError):
        kernel.rms_norm_forward(x_NC, weight_C[:4], 1e-5, False, False)
    with pytest.raises(ValueError, match="float64"):
        kernel.rms_norm_backward(x_NC.double(), x_NC, torch.ones(2, device=device), weight_C, False, False, False)
