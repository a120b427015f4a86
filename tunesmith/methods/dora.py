"""DoRA: LoRA turns each row of a frozen matrix, a trained length scales it (Liu et al. 2024, arXiv:2402.09353, eq. 5).

    y = m/‖W + s·B·A‖ · (W·x + s·B·(A·x))         ‖·‖ over each row; m [out] begins as ‖W‖, so the first output is the base's

           ┌────────── W [out, in], frozen; bf16, fp32 or NF4 ──────────┐
      x ───┤                                                            ├──(+)── · m/‖W + s·B·A‖ ── y
           └── A [r, in] ──────────────► B [out, r] ────────────── · s ─┘

The norm gets no gradient (section 4.3 there: less memory, the same accuracy). It is exact without a dense B·A:

    ‖W + s·B·A‖² = ‖W‖² + 2s·rowsum((W·Aᵀ)∘B) + s²·rowsum((B·(A·Aᵀ))∘B)

‖W‖² is computed once, the rest once for each optimizer step, in fp32 whatever the base is kept in.

Cost: r·(in + out) + out parameters a layer; beside LoRA's work one pass over the output and one over its gradient.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods import lora
from tunesmith.methods.parts import extras
from tunesmith.methods.settings import DoRA as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import is_nf4, weight_of
from tunesmith.models.products import thin

NF4 = True  # trains over an NF4 base (QDoRA)
LEARNING_RATES = {576: 0.0021, 3072: 1e-4}  # by channels of the model
_TINY = 1e-18  # a row of zeros has no direction: its factor is m/tiny, its output 0, never NaN; fp32 holds the square
_NORM_ROWS = 1024  # rows of a bf16 matrix that stand in fp32 at once


class DoRA(nn.Module):
    """Direction and magnitude beside one linear layer. Owns A, B and the magnitude in fp32; the layer is lent for the call."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, dropout: float = 0.0, device: Any = None):
        super().__init__()
        self.training = False  # `Tuning.train` turns dropout on
        self.scale, self.dropout = scale, dropout
        self.A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32, device=device))
        self.B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32, device=device))
        self.magnitude = nn.Parameter(torch.empty(out_features, dtype=torch.float32, device=device))
        self._base: tuple[Any, int, Tensor] | None = None  # of which matrix and version, ‖W‖² [out]
        self._norm: tuple[Any, Tensor] | None = None  # of which A and B, ‖W + s·B·A‖ [out]

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in x's dtype.

        Dropout as `peft` has it: what is dropped passes the base as it is, unscaled: y = W·(x - x̃) + b + m/‖·‖·(W·x̃ + s·B·A·x̃).
        """
        if self.dropout and self.training:
            dropped = nn.functional.dropout(x, self.dropout)
            kept: Tensor = _DoRAProduct.apply(dropped, self.A, self.B, self.magnitude, self, base, None)
            return slots.own_forward(base, x - dropped) + kept
        return _DoRAProduct.apply(x, self.A, self.B, self.magnitude, self, base, base.bias)

    def factors(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """(down [R, in], up [out, R] with the scale in it, m/‖W + s·B·A‖ - 1 [out]) in fp32: the third is laid on base and update."""
        weight_OI = layer.dequantized() if is_nf4(layer) else weight_of(layer)  # type: ignore[operator]
        return self.A, self.scale * self.B, self.magnitude / self.norm(layer, weight_OI) - 1

    def folded(self, weight_OI: Tensor) -> Tensor:
        """m/‖W + s·B·A‖ · (W + s·B·A) in fp32, [out, in], with the norm of the matrix that is given."""
        turned_OI = weight_OI.float() + self.scale * (self.B.float() @ self.A.float())
        return turned_OI * (self.magnitude / turned_OI.norm(dim=1).clamp(min=_TINY))[:, None]

    @torch.no_grad()
    def norm(self, base: nn.Module, weight_OI: Tensor) -> Tensor:
        """‖W + s·B·A‖ [out] in fp32, computed again only where A, B or the base has changed."""
        squares_O = self._squares(base, weight_OI)
        key = (self.A._version, self.B._version, squares_O)
        if self._norm is None or self._norm[0][:2] != key[:2] or self._norm[0][2] is not squares_O:
            A, B, s = self.A.float(), self.B.float(), self.scale
            cross_O = torch.cat([(rows.float() @ A.T * b).sum(1) for rows, b in zip(*_in_pieces(weight_OI, B), strict=True)])
            own_O = ((B @ (A @ A.T)) * B).sum(1)
            self._norm = key, (squares_O + 2 * s * cross_O + s * s * own_O).clamp_(min=_TINY**2).sqrt_()
        return self._norm[1]

    def _squares(self, base: nn.Module, weight_OI: Tensor) -> Tensor:
        """‖W‖² of each row, once for a base."""
        kept: Any = base.weight
        if self._base is None or self._base[0]() is not kept or self._base[1] != kept._version:
            squares_O = torch.cat([rows.float().square().sum(1) for rows in weight_OI.split(_NORM_ROWS)])
            self._base = weakref.ref(kept), kept._version, squares_O
        return self._base[2]


def _in_pieces(weight_OI: Tensor, B: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows = len(weight_OI) if weight_OI.dtype == torch.float32 else _NORM_ROWS  # fp32 needs no copy
    return weight_OI.split(rows), B.split(rows)


class _DoRAProduct(torch.autograd.Function):
    """y = g∘(x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + b with g = m/norm as one function; never makes a gradient of W or of the norm.

    With z what stands in the brackets:

    dX = (dY∘g)·W + s·(dY·gB)·A     dA = s·(dY·gB)ᵀ·X     dB = s·g∘(dYᵀ·(X·Aᵀ))     dm = Σ dY∘z / norm

    dm needs z, and making it again would be a third large product, half of a step's work once more. Without a bias z = y/g, and
    y is kept, which most of what stands behind a linear layer keeps anyway; with a bias z itself is, since taking a large bias
    off a rounded y would leave little. In the backward pass g is laid on dY or on W, whichever is smaller.

    g is near one, and bf16 does not tell 1 from 1.003: what is laid on is g - 1, on a product that is added in fp32 and rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, magnitude: Tensor, module: DoRA, base: nn.Module, bias_O: Tensor | None
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        weight_OI = weight_of(base)
        norm_O = module.norm(base, weight_OI)
        beyond_O = (magnitude / norm_O - 1).to(x.dtype)
        p_RN = thin(A.to(x.dtype), x_NI)
        z_NO = (x_NI @ weight_OI.T).addmm_(p_RN.T, B.to(x.dtype).T, alpha=module.scale)
        if bias_O is None:
            y_NO = kept_NO = z_NO.addcmul_(z_NO, beyond_O)
        else:
            kept_NO = z_NO
            y_NO = torch.addcmul(z_NO, z_NO, beyond_O).add_(bias_O)
        ctx.save_for_backward(x_NI, p_RN, A, B, magnitude, norm_O, kept_NO)
        ctx.base, ctx.scale, ctx.keeps_output = base, module.scale, bias_O is None
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, p_RN, A, B, magnitude, norm_O, kept_NO = ctx.saved_tensors
        dy_NO = dy.reshape(-1, dy.shape[-1])
        g_O = magnitude / norm_O
        q_RN = thin((B * g_O[:, None]).to(dy.dtype).T, dy_NO)
        dA = (q_RN @ x_NI).to(A.dtype).mul_(ctx.scale)
        dB = (p_RN @ dy_NO).T.to(B.dtype).mul_(ctx.scale * g_O[:, None])
        dm = (dy_NO * kept_NO).sum(0, dtype=torch.float32)
        dm = torch.where(magnitude == 0, 0.0, dm / magnitude) if ctx.keeps_output else dm / norm_O
        dx = None
        if ctx.needs_input_grad[0]:
            weight_OI, beyond_O = weight_of(ctx.base), (g_O - 1).to(dy.dtype)
            if dy_NO.shape[0] < weight_OI.shape[1]:
                dy_NO = torch.addcmul(dy_NO, dy_NO, beyond_O)
            else:
                weight_OI = torch.addcmul(weight_OI, weight_OI, beyond_O[:, None])
            dx = (dy_NO @ weight_OI).addmm_(q_RN.T, A.to(dy.dtype), alpha=ctx.scale).view(*dy.shape[:-1], A.shape[1])
        return dx, dA, dB, dm, None, None, None


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The modules, by path, without values. Raises LookupError where a target is not in the model or is an embedding."""
    return lora.assemble(model, settings, DoRA, device)


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """A and B as in LoRA; the magnitude is the norm of the base's rows as they are in memory (NF4: as dequantised)."""
    lora.kaiming(tuning, start.seed)
    modules: dict[str, Any] = tuning.adapter
    for path, module in modules.items():
        if hasattr(module, "magnitude"):
            layer = start.model.get_submodule(path)
            module.magnitude.copy_(module.norm(layer, weight_of(layer)))
    extras.begin(tuning, start.model)
