"""Root-mean-square norm as one function: it keeps x and one number a token.

    y = x / √(mean(x²) + ε) · w          the kinds differ in where they round, and in w:

    kind            w        rounding below fp32
    cast_first      w        x/√… is rounded, then multiplied        Llama, Mistral, Qwen, Phi 3, GLM
    cast_last       w        everything in fp32, rounded once        OLMo 2, GPT-OSS
    one_plus        1 + w    everything in fp32, rounded once        Gemma

The class as it is keeps x, x/√… and what lies between, and its backward pass goes some twenty times over memory of x's size; this one
goes over it seven times.

Shapes: N tokens, C channels.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tunesmith.models import kernels
from tunesmith.models.parts import drawn, recipes

SAID = "our own norms"  # to users
_EPSILONS = ("variance_epsilon", "eps", "norm_eps", "epsilon")  # what classes call ε


@dataclass(frozen=True, slots=True)
class Kind:
    """See the table above."""

    one_plus: bool
    cast_first: bool


KINDS = {"cast_first": Kind(False, True), "cast_last": Kind(False, False), "one_plus": Kind(True, False)}


def forward_of(module: nn.Module, dtype: torch.dtype) -> Any:
    """A forward for a module that is such a norm, or None."""
    epsilon = next((value for name in _EPSILONS if isinstance(value := vars(module).get(name), float)), None)
    weight = module._parameters.get("weight")
    if epsilon is None or weight is None or weight.ndim != 1 or "norm" not in type(module).__name__.lower():
        return None
    if len(module._parameters) != 1 or module._modules or module._buffers:
        return None
    for kind in KINDS.values():
        if _is(module, kind, epsilon, dtype):
            return _Forward(module, kind, epsilon)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Forward:
    module: nn.Module
    kind: Kind
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        weight: Any = self.module.weight  # looked up at each call: a trained copy may stand there
        if weight.dtype != x.dtype or x.shape[-1] != weight.shape[0]:
            return type(self.module).forward(self.module, x)  # type: ignore[return-value]
        return normed(x, weight, self.epsilon, self.kind)


def _is(module: nn.Module, kind: Kind, epsilon: float, dtype: torch.dtype) -> bool:
    """Whether the class computes this kind, on drawn numbers and a drawn weight."""
    channels = module.weight.shape[0]  # type: ignore[union-attr, index]
    probe = drawn.stand_in(module)
    probe._parameters = {"weight": nn.Parameter(drawn.normal((channels,), dtype), requires_grad=False)}
    x = drawn.normal((5, channels), dtype, scale=3.0)
    return drawn.agree(lambda: type(module).forward(probe, x), lambda: normed(x, probe.weight, epsilon, kind))  # type: ignore[arg-type]


def normed(x: Tensor, weight_C: Tensor, epsilon: float, kind: Kind) -> Tensor:
    """[..., C] to [..., C], both of the weight's dtype."""
    y: Tensor = _Normed.apply(x, weight_C, epsilon, kind)
    return y


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_C: Tensor, epsilon: float, kind: Kind) -> Tensor:
        x_NC = x.reshape(-1, x.shape[-1])
        ctx.by_kernel = kernels.available(x.device) and x.dtype != torch.float64
        if ctx.by_kernel:
            x_NC = x_NC.contiguous()
            y_NC, rstd_N = _by_kernel(x_NC, weight_C, epsilon, kind)
        else:
            rstd_N = _reciprocal_root(x_NC, epsilon)
            y_NC = _scaled(x_NC, rstd_N, weight_C, kind)
        if ctx.needs_input_grad[0]:  # where x needs none, nobody would keep it but the recipe
            again = partial(_again, by_kernel=ctx.by_kernel, epsilon=epsilon, kind=kind)
            recipes.remember(y_NC, again, x_NC, rstd_N, weight_C)
        ctx.save_for_backward(x_NC, rstd_N, weight_C)
        ctx.kind = kind
        return y_NC.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, rstd_N, weight_C = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        dy_NC = dy.reshape(x_NC.shape)
        if ctx.by_kernel:
            from tunesmith.models.kernels.rms_norm import rms_norm_backward

            kind, dy_NC = ctx.kind, dy_NC.contiguous()
            dx_NC: Tensor | None
            dx_NC, dweight_C = rms_norm_backward(dy_NC, x_NC, rstd_N, weight_C, kind.one_plus, kind.cast_first, needs_weight)
        else:
            gradients = _gradients_fp32 if x_NC.dtype == torch.float32 else _gradients
            dx_NC, dweight_C = gradients(dy_NC, x_NC, rstd_N, weight_C, ctx.kind, needs_x, needs_weight)
        return None if dx_NC is None or not needs_x else dx_NC.view(dy.shape), dweight_C, None, None


def _reciprocal_root(x_NC: Tensor, epsilon: float) -> Tensor:
    """1 / √(mean(x²) + ε) in fp32 (fp64 of fp64), reading x once."""
    exact = x_NC if x_NC.dtype == torch.float64 else x_NC.float()
    return torch.linalg.vector_norm(exact, dim=-1).square_().div_(x_NC.shape[-1]).add_(epsilon).rsqrt_()


def _scaled(x_NC: Tensor, rstd_N: Tensor, weight_C: Tensor, kind: Kind) -> Tensor:
    """The norm's output, of which it is exactly known how it rounds: it is made again in the backward pass."""
    h_NC = x_NC * rstd_N[:, None]  # below fp32 this promotes x
    if kind.cast_first:
        return h_NC.to(x_NC.dtype).mul_(weight_C)
    return h_NC.mul_(_factor(weight_C.to(h_NC.dtype), kind)).to(x_NC.dtype)


def _by_kernel(x_NC: Tensor, weight_C: Tensor, epsilon: float, kind: Kind) -> tuple[Tensor, Tensor]:
    from tunesmith.models.kernels.rms_norm import rms_norm_forward

    return rms_norm_forward(x_NC, weight_C, epsilon, kind.one_plus, kind.cast_first)


def _again(x_NC: Tensor, rstd_N: Tensor, weight_C: Tensor, by_kernel: bool, epsilon: float, kind: Kind) -> Tensor:
    return _by_kernel(x_NC, weight_C, epsilon, kind)[0] if by_kernel else _scaled(x_NC, rstd_N, weight_C, kind)


def _factor(weight_C: Tensor, kind: Kind) -> Tensor:
    return 1.0 + weight_C if kind.one_plus else weight_C


def _gradients_fp32(
    dy_NC: Tensor, x_NC: Tensor, rstd_N: Tensor, weight_C: Tensor, kind: Kind, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """By the kernel of layer norm's backward, which holds a token's channels in cache for all of its sums. Told that the mean is 0, it
    still takes away the mean of dy·w, which is put back."""
    factor_C, channels = _factor(weight_C, kind), x_NC.shape[-1]
    zero_N = torch.zeros_like(rstd_N)
    dx_NC, dweight_C, _ = torch.ops.aten.native_layer_norm_backward(
        dy_NC.contiguous(), x_NC.contiguous(), [channels], zero_N, rstd_N, factor_C, None, [needs_x, needs_weight, False]
    )
    if needs_x:
        dx_NC.add_((dy_NC @ factor_C).mul_(rstd_N).div_(channels)[:, None])
    return (dx_NC if needs_x else None), (dweight_C if needs_weight else None)


def _gradients(
    dy_NC: Tensor, x_NC: Tensor, rstd_N: Tensor, weight_C: Tensor, kind: Kind, needs_x: bool, needs_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """By the formula, in fp32, rounded where the class rounds: dx = (dy·w − n·mean(dy·w·n)) / √…, n the normed x."""
    n_NC = x_NC * rstd_N[:, None]
    dweight_C = None
    if needs_weight:
        rounded_NC = n_NC.to(x_NC.dtype) if kind.cast_first else n_NC
        dweight_C = (dy_NC * rounded_NC).sum(0, dtype=n_NC.dtype).to(weight_C.dtype)
    if not needs_x:
        return None, dweight_C
    factor_C = weight_C if kind.cast_first else _factor(weight_C.to(n_NC.dtype), kind)  # dy·w is rounded where x/√… was
    dn_NC = (dy_NC * factor_C).to(n_NC.dtype)
    mean_N1 = (dn_NC * n_NC).mean(-1, keepdim=True)
    return dn_NC.sub_(n_NC.mul_(mean_N1)).mul_(rstd_N[:, None]).to(x_NC.dtype), dweight_C
