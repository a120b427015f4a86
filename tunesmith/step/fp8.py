"""Products with frozen matrices in 8-bit floating point, on GPUs that multiply it twice as fast as bf16.

    y  = x₈·W₈ᵀ · (scale of each token × scale of each output)          forward, sums rounded now and then (fast)
    dX = dY₈·W₈ · (scale of each token × scale of each input)           backward, sums in fp32

e4m3: 4 bits of exponent, 3 of mantissa. Tokens are scaled as they come, each to the largest number that 8 bits hold; a matrix is
scaled and rounded once, in two copies, since the two products want it in two orders of memory. A matrix that is kept as NF4 is
rounded anew each time, from what its codes stand for: two copies would be four times the codes. A and B of an update, the head
and the embedding stay as they are: narrow matrices in 8 bits cost more than they save, and lose most.

Rounding two operands of three bits of mantissa is an error of about 3.7 % of a product where nothing stands out; where a few channels
do, as in the first and last layers of some models, it is more. Such layers keep their own products: `calibrate` asks each on a row.

Shapes: N tokens, I and O inputs and outputs of a layer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import products
from tunesmith.models.nf4 import is_nf4, shape_of, weight_of
from tunesmith.models.products import Product

METHODS = ("lora", "pissa")  # whose products go by `models/products.py`
LARGEST = 0.05  # relative error of a product beyond which a layer stays as it is: a third more than rounding alone
TOLERANCE = 0.3  # of gradients on the first row: errors of some per cent a layer add up over the depth
EVERY = 50  # steps between two looks at the loss
DRIFT = 0.01  # of the loss of a held row in 8 bits against the same in full, relative
CAPABILITY = (8, 9)
_FP8 = torch.float8_e4m3fn
_MAX = torch.finfo(_FP8).max
_MULTIPLE = 16  # of both sides of a matrix, which the kernel asks for


def impossible(device: torch.device) -> str:
    """Why this device has no such products; empty where it has."""
    if device.type != "cuda":
        return f"8-bit floating point needs an NVIDIA GPU of compute capability 8.9 or later, and the run is on {device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return f"8-bit floating point needs compute capability 8.9 or later, and this GPU has {found[0]}.{found[1]}"
    return ""


def rounded(x_NI: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x in 8 bits, and by what to multiply it: one number, in fp32, for each of what is left when `dim` is gone."""
    scale = x_NI.abs().amax(dim, keepdim=True).float().clamp(min=1e-12) / _MAX
    return (x_NI.float() / scale).clamp(-_MAX, _MAX).to(_FP8), scale


def multiplied(x_NI: Tensor, w_OI: Tensor, scale_O1: Tensor, fast: bool) -> Tensor:
    """x·Wᵀ of a matrix that is rounded already: [N, O] in x's dtype."""
    x8_NI, scale_N1 = rounded(x_NI, 1)
    out = x_NI.dtype if x_NI.dtype in (torch.bfloat16, torch.float32) else torch.bfloat16
    if x_NI.device.type == "cuda":
        out = torch.bfloat16  # the only one that the kernel for scales of rows gives
    y_NO = torch._scaled_mm(x8_NI, w_OI.t(), scale_N1, scale_O1.t(), out_dtype=out, use_fast_accum=fast and x_NI.device.type == "cuda")
    return y_NO.to(x_NI.dtype)


def product_of(layer: nn.Module) -> Product:
    """The two products of a layer in 8 bits."""
    if is_nf4(layer):
        return Product(
            lambda x_NI: multiplied(x_NI, *rounded(weight_of(layer), 1), fast=True),
            lambda dy_NO: multiplied(dy_NO, *rounded(weight_of(layer).T.contiguous(), 1), fast=False),
        )
    weight_OI = weight_of(layer).detach()
    forward, backward = rounded(weight_OI.contiguous(), 1), rounded(weight_OI.T.contiguous(), 1)
    return Product(lambda x_NI: multiplied(x_NI, *forward, fast=True), lambda dy_NO: multiplied(dy_NO, *backward, fast=False))


@dataclass(slots=True)
class Eighths:
    """The layers that are computed in 8 bits while it is on. `paths` are all that could be; `left` those whose error is too large."""

    model: Any
    paths: tuple[str, ...]
    left: dict[str, float]
    made: dict[str, Product]

    def on(self) -> None:
        for path in self.paths:
            if path not in self.left:
                if path not in self.made:
                    self.made[path] = product_of(self.model.get_submodule(path))
                products.exchange(self.model.get_submodule(path), self.made[path])

    def off(self) -> None:
        for path in self.paths:
            products.restore(self.model.get_submodule(path))


def of_model(model: Any, targets: Iterable[str]) -> Eighths:
    """For those of the layers at `targets` whose sides the kernel takes."""
    fitting = [path for path in targets if not any(side % _MULTIPLE for side in shape_of(model.get_submodule(path)))]
    return Eighths(model, tuple(fitting), {}, {})


def calibrate(eighths: Eighths, learn: Callable[[], Any], largest: float = LARGEST) -> list[str]:
    """`learn()` makes a row's loss and gradients in the plain way, while each layer measures both of its products on what it meets.

    What errs too much is left; a sentence for the user where that is anything.
    """
    worst: dict[str, Tensor] = {}

    def measuring(path: str) -> Product:
        layer = eighths.model.get_submodule(path)
        eight = eighths.made[path] = product_of(layer)

        def beside(plain: Tensor, other: Tensor) -> Tensor:
            error = (other.float() - plain.float()).norm() / plain.float().norm().clamp(min=1e-12)
            worst[path] = torch.maximum(worst[path], error) if path in worst else error
            return plain

        return Product(
            lambda x_NI: beside(x_NI @ weight_of(layer).T, eight.forward(x_NI)),
            lambda dy_NO: beside(dy_NO @ weight_of(layer), eight.backward(dy_NO)),
        )

    for path in eighths.paths:
        products.exchange(eighths.model.get_submodule(path), measuring(path))
    try:
        learn()
    finally:
        eighths.off()
    errors = dict(zip(worst, torch.stack(list(worst.values())).tolist(), strict=True)) if worst else {}
    eighths.left = {path: errors.get(path, float("inf")) for path in eighths.paths if not errors.get(path, float("inf")) <= largest}
    for path in eighths.left:
        eighths.made.pop(path, None)
    if not eighths.left:
        return []
    path, error = max(eighths.left.items(), key=lambda item: item[1])
    return [f"train.fp8: {len(eighths.left)} of {len(eighths.paths)} layers stay as they are, most of all {path} (error {error:.0%})"]


def drifted(eighths: Eighths, mean_loss: Callable[[], float]) -> str:
    """Look at the loss of a held row both ways; why 8 bits must be left, which is then done, or an empty text."""
    eight = mean_loss()
    eighths.off()
    plain = mean_loss()
    if abs(eight - plain) <= DRIFT * abs(plain):
        eighths.on()
        return ""
    return f"train.fp8: the loss in 8 bits has drifted to {eight:.4f} where it is {plain:.4f} in full; the run goes on in full"
