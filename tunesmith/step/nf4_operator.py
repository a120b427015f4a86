"""The product with an NF4 matrix as one operator, which a compiler cannot look into.

Left to itself it would find the same dequantisation in the forward and in the backward pass, make it once, and keep the whole matrix
in between: four times the memory that NF4 is there to save.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import nf4
from tunesmith.models.nf4 import Nf4Linear, Quantized


class Nf4Product(Nf4Linear):
    """An `Nf4Linear` in the eyes of a compiler."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = product(x, self.weight, self.absmax, self.nested_absmax, self.offset, self.out_features)
        return y if self.bias is None else y + self.bias


@torch.library.custom_op("tunesmith::nf4_product", mutates_args=())
def product(x: Tensor, codes_OI: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None, out_features: int) -> Tensor:
    """[..., I] to [..., O]; the codes and scales as in `models/nf4.Quantized`."""
    weight_OI = nf4.dequantize(Quantized(codes_OI, absmax, nested_absmax, offset), (out_features, x.shape[-1]), x.dtype)
    return nn.functional.linear(x, weight_OI)


@product.register_fake
def _(x: Tensor, codes_OI: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("tunesmith::nf4_product_backward", mutates_args=())
def _backward(
    dy: Tensor, codes_OI: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None, in_features: int
) -> Tensor:
    weight_OI = nf4.dequantize(Quantized(codes_OI, absmax, nested_absmax, offset), (dy.shape[-1], in_features), dy.dtype)
    return dy @ weight_OI


@_backward.register_fake
def _(dy: Tensor, codes_OI: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None, in_features: int) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], in_features)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *codes, _ = inputs
    ctx.save_for_backward(*codes)
    ctx.in_features = x.shape[-1]


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _backward(dy, *ctx.saved_tensors, ctx.in_features), None, None, None, None, None


product.register_autograd(_differentiate, setup_context=_keep)
