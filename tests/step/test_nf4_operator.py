import pytest
import torch

from tunesmith.models import nf4
from tunesmith.step import nf4_operator


@pytest.mark.parametrize("double", [True, False])
def test_it_is_the_layers_own_product_and_gradient(double: bool) -> None:
    codes = nf4.quantize(torch.randn(48, 64), double)
    layer = nf4.Nf4Linear(64, 48, True, double, torch.float32)
    layer.weight = torch.nn.Parameter(codes.codes_OI, requires_grad=False)
    layer.absmax, layer.nested_absmax, layer.offset = codes.absmax, codes.nested_absmax, codes.offset  # type: ignore[assignment]
    assert layer.bias is not None
    layer.bias.data = torch.randn(48)
    layer.bias.requires_grad_(False)
    x, dy = torch.randn(2, 5, 64, requires_grad=True), torch.randn(2, 5, 48)
    expected = layer(x)
    wanted = torch.autograd.grad(expected, x, dy)[0]
    layer.__class__ = nf4_operator.Nf4Product
    ours = layer(x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, x, dy)[0], wanted)


def test_a_compiler_knows_its_shapes() -> None:
    codes = nf4.quantize(torch.randn(16, 64), True)
    arguments = (codes.codes_OI, codes.absmax, codes.nested_absmax, codes.offset, 16)
    torch.library.opcheck(nf4_operator.product, (torch.randn(3, 64, requires_grad=True), *arguments))
