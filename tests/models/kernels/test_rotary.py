"""Rotation of halves against the formula, with autograd's own gradient, in every layout that a class hands over."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

from tunesmith.models.kernels.rotary import rotate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def plain(x: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    cos, sin, size = cos_BTR[:, None], sin_BTR[:, None], cos_BTR.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def drawn(shape, size, dtype, device, angle_rows=None):
    torch.manual_seed(0)
    rows, heads, tokens, channels = shape
    x = torch.randn(rows, tokens, heads, channels).to(device, dtype).transpose(1, 2)  # as a class has it
    cos, sin = torch.randn(2, angle_rows or rows, tokens, size).to(device, dtype)  # no rotation's: halves differ
    return x, cos, sin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "size"), [((1, 3, 7, 16), 16), ((2, 9, 5, 64), 64), ((2, 4, 3, 80), 80), ((1, 2, 5, 24), 10), ((1, 1, 1, 2), 2)], ids=str
)
def test_values_and_gradients_are_those_of_the_formula(shape, size, dtype, device):
    x, cos, sin = drawn(shape, size, dtype, device)
    leaf = x.detach().clone().requires_grad_()
    expected = plain(leaf, cos, sin)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    y = rotate(x, cos, sin, back=False)
    assert y.dtype == dtype and y.stride() == x.stride(), "laid out as x"
    if dtype == torch.float32:
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(rotate(dy, cos, sin, back=True), leaf.grad, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(y, expected.detach()), "every product and the sum are rounded as the class rounds them"
        assert torch.equal(rotate(dy, cos, sin, back=True), leaf.grad)


def test_angles_of_one_row_are_for_all(device):
    x, cos, sin = drawn((3, 2, 4, 8), 8, torch.float32, device, angle_rows=1)
    torch.testing.assert_close(rotate(x, cos, sin, back=False), plain(x, cos, sin), rtol=1e-6, atol=1e-6)


def test_layouts(device):
    """Heads before tokens, a slice of queries, keys and values in one tensor, and angles that lie apart."""
    x, cos, sin = drawn((2, 3, 5, 16), 16, torch.float32, device)
    expected = plain(x, cos, sin)
    joined = torch.randn(2, 5, 9, 16, device=device)
    joined[:, :, 3:6] = x.transpose(1, 2)
    slices = joined[:, :, 3:6].transpose(1, 2)
    for given in (x.contiguous(), slices):
        torch.testing.assert_close(rotate(given, cos, sin, back=False), expected, rtol=1e-6, atol=1e-6)
    cos, sin = (torch.stack([angle, angle], -1)[..., 0] for angle in (cos, sin))  # lies apart
    torch.testing.assert_close(rotate(x, cos, sin, back=False), expected, rtol=1e-6, atol=1e-6)
    assert rotate(x[:, :, :0], cos[:, :0], sin[:, :0], back=False).shape == (2, 3, 0, 16)


def test_what_is_not_known_is_refused(device):
    x, cos, sin = drawn((1, 2, 3, 8), 8, torch.float32, device)
    with pytest.raises(ValueError, match="float64"):
        rotate(x.double(), cos.double(), sin.double(), back=False)
    with pytest.raises(ValueError, match="bfloat16"):
        rotate(x, cos.bfloat16(), sin, back=False)
    for wrong, angles in [(x, cos[:, :2]), (x[..., :4], cos), (x.transpose(2, 3).contiguous().transpose(2, 3), cos)]:
        with pytest.raises(AssertionError):
            rotate(wrong, angles, angles, back=False)
