"""Rotary embedding of queries and keys as one function: it keeps cos and sin, which all layers share, and nothing of its own.

    (a, b) → (a·cos − b·sin, b·cos + a·sin)        a, b the halves of what is rotated; channels behind it pass

The class's way makes −b, a concatenation and two products first: five tensors of the queries' size, and as many passes backward.

Classes call a function of their file, not a module, so there is nothing on an instance to put this in place of. What stands in is
the attention's own forward, its code as it is, looking up that one name in another dictionary: the file and the class stay as they
are, and other models of the class too. A class whose forward does not look like this, or rotates pairs of neighbours, is left alone.

Shapes: H heads, T tokens, E channels of a head, R of which are rotated.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.models import kernels
from tunesmith.models.parts import drawn

SAID = "our own rotary embedding"  # to users
_NAME = "apply_rotary_pos_emb"


def forward_of(module: nn.Module, dtype: torch.dtype) -> Any:
    """A forward for an attention module that rotates halves, or None."""
    kind: Any = type(module)
    if (function := _bound_anew(kind, dtype)) is None:
        return None
    return MethodType(function, module)


@cache
def _bound_anew(kind: Any, dtype: torch.dtype) -> Any:
    """The class's forward with our function in the place of its file's; one for all of its modules."""
    forward, file = kind.forward, sys.modules.get(kind.__module__)
    if not isinstance(forward, FunctionType) or file is None or hasattr(forward, "__wrapped__"):
        return None
    theirs = vars(file).get(_NAME)
    if theirs is None or _NAME not in forward.__code__.co_names or forward.__globals__ is not vars(file):
        return None
    if not _rotates(theirs, 8, dtype):
        return None
    names = vars(file) | {_NAME: _instead_of(theirs, in_part=_rotates(theirs, 4, dtype))}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _instead_of(theirs: Callable[..., tuple[Tensor, Tensor]], in_part: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """[B, H, T, E] queries and keys, [B, T, R] cos and sin; what is called otherwise is theirs to do."""
        known = cos.ndim == 3 and q.ndim == 4 and q.dtype == k.dtype == cos.dtype == sin.dtype and not cos.requires_grad
        fits = cos.shape[-1] == q.shape[-1] or (in_part and cos.shape[-1] < q.shape[-1])
        if others or named or not known or not fits:
            return theirs(q, k, cos, sin, *others, **named)
        return rotated(q, cos, sin), rotated(k, cos, sin)

    return apply_rotary_pos_emb


def _rotates(theirs: Callable[..., tuple[Tensor, Tensor]], size: int, dtype: torch.dtype) -> bool:
    """Whether their function rotates halves of the first `size` of 8 channels, on drawn numbers that are no rotation's."""
    q, k = drawn.normal((2, 3, 5, 8), dtype), drawn.normal((2, 1, 5, 8), dtype)
    cos, sin = drawn.normal((2, 5, size), dtype), drawn.normal((1, 2, 5, size), dtype, 0.5)[0]
    return all(drawn.agree(partial(_one_of, theirs, i, q, k, cos, sin), partial(rotated, x, cos, sin)) for i, x in enumerate((q, k)))


def _one_of(function: Callable[..., tuple[Tensor, Tensor]], which: int, *inputs: Tensor) -> Tensor:
    return function(*inputs)[which]


def rotated(x_BHTE: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
    """The rotation, of x's shape and dtype."""
    y: Tensor = _Rotated.apply(x_BHTE, cos_BTR, sin_BTR)
    return y


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos_BTR: Tensor, sin_BTR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BTR, sin_BTR)
        return _by_any(x, cos_BTR, sin_BTR, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos_BTR, sin_BTR = ctx.saved_tensors
        return _by_any(dy, cos_BTR, sin_BTR, back=True), None, None


def _by_any(x: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, back: bool) -> Tensor:
    """By a GPU's kernel where there is one, a single pass."""
    if kernels.available(x.device) and x.dtype != torch.float64 and x.stride(-1) == 1:
        from tunesmith.models.kernels.rotary import rotate

        return rotate(x, cos_BTR, sin_BTR, back)
    return _turned(x, cos_BTR[:, None], sin_BTR[:, None], back)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """x·cos, to which the halves' products with sin are added crosswise: sin of where they go to, and `back` of where they come from."""
    half, size = cos.shape[-1] // 2, cos.shape[-1]
    first, second = x[..., :half], x[..., half:size]
    sin_first, sin_second = sin[..., :half], sin[..., half:]
    y = _scaled(x, cos)
    if back:
        _add_product(y[..., :half], second, sin_second, 1)
        _add_product(y[..., half:size], first, sin_first, -1)
    else:
        _add_product(y[..., :half], second, sin_first, -1)
        _add_product(y[..., half:size], first, sin_second, 1)
    return y


def _add_product(y: Tensor, x: Tensor, sin: Tensor, sign: int) -> None:
    if y.dtype.itemsize < 4:  # the product is rounded, as the class has it
        y.add_(x * sin, alpha=sign)
    else:
        y.addcmul_(x, sin, value=sign)


def _scaled(x: Tensor, cos: Tensor) -> Tensor:
    """x·cos where there is a cos, x behind it; laid out as x."""
    size = cos.shape[-1]
    if size == x.shape[-1]:
        return x * cos
    y = torch.empty_like(x)
    torch.mul(x[..., :size], cos, out=y[..., :size])
    y[..., size:].copy_(x[..., size:])
    return y
