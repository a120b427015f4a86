"""Whether a class computes what a part computes: asked of the class itself, on drawn numbers, on a CPU.

A module is recognised by what stands in it, then its class's own forward is run on a stand-in of it with small drawn weights. This
decides between kinds that look alike (silu or gelu, w or 1 + w, where they round), and refuses everything else.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

FEW = 0.02  # of the values below fp32 may fall on the other side of a rounding
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}  # of the largest value


@lru_cache(maxsize=64)
def normal(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """The same draw for the same shape, whatever else is drawn in the run. It is lent: not to be changed."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def stand_in(module: nn.Module) -> Any:
    """An object of the module's class with its attributes, whose parameters and submodules may be exchanged: the module keeps its own."""
    other: Any = object.__new__(type(module))
    vars(other).update({name: value for name, value in vars(module).items() if name != "forward"})
    other._parameters, other._modules = dict(module._parameters), dict(module._modules)
    return other


@torch.no_grad()
def agree(theirs: Callable[[], Any], ours: Callable[[], Any]) -> bool:
    """Whether both give the same tensor: in fp32 up to its last digits, below it the same but for `FEW` last bits."""
    try:
        a, b = theirs(), ours()
    except Exception:  # a class that cannot be asked like this is another one
        return False
    if type(a) is not Tensor or a.shape != b.shape or a.dtype != b.dtype or not torch.isfinite(a).all():
        return False
    if not (a.double() - b.double()).abs().max() <= TOLERANCES[a.dtype] * a.abs().max().double():  # NaN is not
        return False
    return a.dtype.itemsize >= 4 or (a != b).double().mean().item() <= FEW
