"""Answers on a CPU without 16-bit arithmetic: frozen matrices packed as float16, computed in fp32.

A step of an answer multiplies every matrix by a few rows, and reading the matrix takes longer than multiplying. A checkpoint in bfloat16
or float16 that is computed in fp32 is read at twice its size, and products of few rows use a quarter of what a CPU can do. FBGEMM, which
comes with torch, reads float16, widens it in registers and adds in fp32: for 16 rows half the time, for one row a third.

    bfloat16 8 digits, float16 11: of bfloat16's values between 2⁻¹⁴ and 2¹⁶ nothing is lost, of smaller ones at most 2⁻²⁵.

A matrix that float16 does not hold so exactly (one that was trained in fp32) stays as it is. The packed copy stands beside the matrix,
half its size, within a budget. Shapes: N rows, I and O inputs and outputs of a layer.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import products, slots
from tunesmith.models.products import Product

LOST = 2.0**-25  # of a weight: half of float16's smallest step
LEAST = 1 << 14  # weights below which a product is all overhead
_PACKED = "_tunesmith_halves"


@dataclass(frozen=True, slots=True)
class _Packed:
    codes: Any  # FBGEMM's own layout
    state: tuple[int, int]  # of the matrix that it was made of
    bytes: int


def pack(model: nn.Module, budget_bytes: int) -> list[nn.Module]:
    """Let the model's fp32 linear layers on a CPU be computed by packed matrices, as many as the budget holds; those that now are.

    What stands beside a layer, or is placed there later, goes by them too. Gradients are never made through them.
    """
    layers: list[nn.Module] = []
    for layer in model.modules():
        if type(layer) is not nn.Linear or not _fits(layer.weight) or slots.PART in vars(layer):
            continue
        packed = vars(layer).get(_PACKED)
        if packed is None or packed.state != _state(layer.weight):
            size = 2 * layer.weight.numel()
            if size > budget_bytes or not holds() or not is_exact(layer.weight):
                vars(layer).pop(_PACKED, None)
                continue
            codes = torch.ops.quantized.linear_prepack_fp16(layer.weight.detach(), None)
            packed = _Packed(codes, _state(layer.weight), size)
            object.__setattr__(layer, _PACKED, packed)
        budget_bytes -= packed.bytes
        _stand(layer, packed)
        layers.append(layer)
    return layers


def unpack(layers: list[nn.Module], keep: bool = False) -> None:
    """The plain products again. With `keep` the packed copies stay for the next time."""
    for layer in layers:
        products.restore(layer)
        slots.step_aside(layer)
        if not keep:
            vars(layer).pop(_PACKED, None)


@contextmanager
def packed(model: nn.Module, budget_bytes: int) -> Iterator[None]:
    """The same for a while. Copies are kept with the model for the next time: packing reads every weight."""
    layers = pack(model, budget_bytes)
    try:
        yield
    finally:
        unpack(layers, keep=True)


def is_exact(weight_OI: Tensor) -> bool:
    """Whether float16 holds a matrix but for `LOST`."""
    return bool((weight_OI.half().float() - weight_OI).abs().max() <= LOST)  # beyond its range it holds infinity


@cache
def holds() -> bool:
    """Whether this build of torch has these products, and they are right: tried once."""
    try:
        drawn = torch.Generator().manual_seed(0)
        weight_OI = torch.randn(72, 50, generator=drawn).bfloat16().float()
        x_NI = torch.randn(3, 50, generator=drawn)
        found = torch.ops.quantized.linear_dynamic_fp16(x_NI, torch.ops.quantized.linear_prepack_fp16(weight_OI, None))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    if right := torch.allclose(found, x_NI @ weight_OI.T, rtol=1e-4, atol=1e-4):
        return right
    warnings.warn("torch's products with matrices in float16 give other values here; the plain ones are used", RuntimeWarning, stacklevel=2)
    return False


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= LEAST


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


def _stand(layer: nn.Linear, packed: _Packed) -> None:
    """In place of the class's product, and of ours beside an update."""

    def product(x_NI: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.linear_dynamic_fp16(x_NI, packed.codes)
        return found

    def forward(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return nn.functional.linear(x, layer.weight, layer.bias)
        y = product(x)
        return y if layer.bias is None else y.add_(layer.bias)

    products.exchange(layer, Product(product, lambda dy_NO: dy_NO @ layer.weight))
    slots.stand_in(layer, forward)
