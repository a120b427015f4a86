"""PyTorch's layer norm stays what it is; its output can be made again."""

import pytest
import torch
from torch import nn

from tunesmith.models.parts import layer_norm, recipes


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_is_made_again_to_the_bit(bias):
    module = nn.LayerNorm(16, bias=bias)
    nn.init.normal_(module.weight)
    forward = layer_norm.forward_of(module, torch.float32)
    x = torch.randn(5, 16, requires_grad=True)
    with recipes.remembered() as book:
        y = forward(x)
        [recipe] = book.recipes.values()
    assert torch.equal(y, module(x)) and torch.equal(recipe.output(), y)


def test_only_pytorchs_own_with_a_weight():
    class Other(nn.LayerNorm):
        pass

    for module in (Other(16), nn.LayerNorm(16, elementwise_affine=False), nn.LayerNorm((4, 16)), nn.RMSNorm(16)):
        assert layer_norm.forward_of(module, torch.float32) is None
