"""PiSSA: what is trained of each matrix are its leading singular vectors (Meng et al. 2024, arXiv:2404.02948).

    y = (W - s·B0·A0)·x + s·B·(A·x)          B0·A0 = the leading part of W, over s; A and B begin as A0 and B0

           ┌────────── W - s·B0·A0 [out, in], frozen ──────────┐
      x ───┤                                                   ├──(+)── y
           └── A [r, in] ────────► B [out, r] ────────── · s ──┘

Over fp32 and bf16 the base is never touched. What differs from it is computed beside it, in a form that rounding cannot
hurt: B·A - B0·A0 = (B-B0)·A + B0·(A-A0), a product of rank 2r whose every term is as small as what was learned. At the start it is
zero to the bit, and the served file holds these same factors: a LoRA of rank 2r over the original base.

Over NF4 (QPiSSA) the layer holds nf4(W - s·B0·A0) while the module is in place: without its leading part the matrix is rounded less
coarsely. `lift` puts the codes of the base back, which stand aside in main memory meanwhile: that is 0.52 bytes a weight, and
takes no time, where rounding the checkpoint's matrices anew would take seconds to minutes for each change of adapters.

Cost: r·(in + out) trained parameters a layer, as many that are fixed; time is that of LoRA of rank 2r (dense), of rank r (NF4).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods import lora
from tunesmith.methods.lora import LoRA
from tunesmith.methods.parts import extras
from tunesmith.methods.parts.decompose import leading
from tunesmith.methods.settings import PiSSA as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import nf4, products, slots
from tunesmith.models.draws import seed_of
from tunesmith.models.nf4 import Quantized
from tunesmith.models.products import Update, kept

NF4 = True  # trains over an NF4 base, whose codes become those of the residual
LEARNING_RATES = {576: 0.0011, 3072: 7e-5}  # by channels of the model
# What vLLM's --max-lora-rank can be; the second is its default (vllm/config/lora.py, version 0.22).
SERVED_RANKS, SERVED_BY_DEFAULT = (1, 8, 16, 32, 64, 128, 256, 320, 512), 16


class PiSSA(nn.Module):
    """The update of one linear layer. Trains A and B, remembers A0 and B0; all are fp32. The layer is lent for the call."""

    A0: Tensor
    B0: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, dropout: float = 0.0, device: Any = None):
        super().__init__()
        self.training = False
        self.scale, self.dropout = scale, dropout
        shape: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.A = nn.Parameter(torch.zeros(rank, in_features, **shape))
        self.B = nn.Parameter(torch.zeros(out_features, rank, **shape))
        self.register_buffer("A0", torch.zeros(rank, in_features, **shape))
        self.register_buffer("B0", torch.zeros(out_features, rank, **shape))
        self.rounded: Callable[[Tensor], Tensor] | None = None  # over NF4: a matrix -> what its layer keeps of it, in fp32
        self.differences: dict[str, float] = {}  # over NF4: base served upon -> relative error of weights against those trained
        self._aside: Quantized | None = None  # over NF4: the codes that the layer does not hold now
        self.plain = False  # by plain operators, with which the fast way is compared
        self._over_base: dict[str, Any] = {}  # factors as they were last computed with
        self._over_residual: dict[str, Any] = {}

    @torch.no_grad()
    def start_from(self, b_OR: Tensor, a_RI: Tensor) -> None:
        """First values, B·A: what is taken out of the base."""
        for start, trained, value in ((self.A0, self.A, a_RI), (self.B0, self.B, b_OR)):
            trained.copy_(value)
            start.copy_(value)

    @torch.no_grad()
    def settle(self, layer: Any, dense: Callable[[], Tensor]) -> None:
        """Over NF4: the codes of W - s·B0·A0, which `attach` puts into the layer. `dense` gives W [out, in] in fp32."""
        if not nf4.is_nf4(layer):
            return
        self.rounded = partial(nf4.rounded, double=layer.is_double, dtype=layer.dtype)
        weight_OI = dense().to(self.A0.device)
        residual_OI = weight_OI - self._taken()
        codes = layer.requantised(residual_OI)
        lost_OI = residual_OI.sub_(nf4.dequantize(codes, (layer.out_features, layer.in_features), layer.dtype))
        norm = max(weight_OI.norm().item(), 1e-30)
        self.differences = {"original": lost_OI.norm().item() / norm}
        lost_OI.sub_(weight_OI).add_(layer.dequantized())  # nf4(W) - s·B0·A0 against nf4(W - s·B0·A0)
        self.differences["nf4"] = lost_OI.norm().item() / norm
        self._aside = codes.to(torch.device("cpu"))

    def attach(self, layer: Any) -> None:
        """Stand in place of the layer's forward; over NF4, with the codes of the residual in it."""
        if self._aside is not None:
            self._aside = layer.exchange(self._aside)
        object.__setattr__(layer, "forward", partial(self, layer))

    def detach(self, layer: Any) -> None:
        """The layer as it was, to the bit."""
        vars(layer).pop("forward", None)
        if self._aside is not None:
            self._aside = layer.exchange(self._aside)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer and its update make of x: [..., in] to [..., out], in x's dtype."""
        if not torch.compiler.is_compiling() and (update := self.low_rank(layer, x.dtype)) is not None:
            return products.updated(x, [update])[0]
        down, up = self._down_up()
        read = nn.functional.dropout(x, self.dropout, self.training)
        added = nn.functional.linear(nn.functional.linear(read, down.to(x.dtype)), up.to(x.dtype))
        return slots.own_forward(layer, x) + self.scale * added

    def low_rank(self, layer: nn.Module, dtype: torch.dtype) -> Update | None:
        """What stands beside the layer; None where it is computed alone: plainly, or because each layer drops inputs of its own."""
        if self.plain or (self.dropout and self.training):
            return None
        store = self._over_base if self.rounded is None else self._over_residual
        down_KI, up_OK = kept(store, dtype, (self.A, self.B, self.A0, self.B0), self._scaled_up)
        return Update(layer, self.A, self.B, down_KI, up_OK, self.scale)

    def _down_up(self) -> tuple[Tensor, Tensor]:
        """The two factors of what is added to the layer: A and B over a residual; [A; A-A0] and [B-B0, B0] over the base itself."""
        if self.rounded is not None:
            return self.A, self.B
        return torch.cat([self.A, self.A - self.A0]), torch.cat([self.B - self.B0, self.B0], dim=1)

    def _scaled_up(self) -> tuple[Tensor, Tensor]:
        down, up = self._down_up()
        return down, self.scale * up

    def factors(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """(down [2R, in], up [out, 2R] with the scale in it, None) in fp32, of the update of the base itself: `as_lora`'s."""
        return self.as_lora().factors(layer)

    def _taken(self) -> Tensor:
        """s·B0·A0, the part of W that is trained; [out, in] in fp32."""
        return self.scale * (self.B0 @ self.A0)

    @torch.no_grad()
    def folded(self, weight_OI: Tensor) -> Tensor:
        """The matrix that was trained, in fp32, [out, in], from the checkpoint's; over NF4, from what rounding leaves of it."""
        weight_OI = weight_OI.to(self.A.device, torch.float32)
        if self.rounded is not None:
            return self.rounded(weight_OI - self._taken()) + self.scale * (self.B @ self.A)
        down, up = self._down_up()
        return weight_OI + self.scale * (up @ down)

    @torch.no_grad()
    def as_lora(self) -> LoRA:
        """A plain LoRA of rank 2r for the base itself. Over NF4 it differs from what was trained, by `differences`."""
        (rank, inner), out = self.A.shape, self.B.shape[0]
        plain = LoRA(inner, out, 2 * rank, self.scale, self.dropout, self.A.device)
        plain.A.copy_(torch.cat([self.A, self.A - self.A0]))
        plain.B.copy_(torch.cat([self.B - self.B0, self.B0], dim=1))
        return plain


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The modules, by path, without values. Raises LookupError where a target is not in the model, or smaller than the rank."""
    chosen = settings.model_copy(update={"alpha": float(settings.rank)}) if settings.alpha == "auto" else settings
    tuning = lora.assemble(model, chosen, PiSSA, device)
    check_rank(settings.rank, tuning.adapter)
    tuning.notes += served_notes(settings.rank)
    tuning.fixed, tuning.layout = fixed(tuning.adapter), "pissa"
    return tuning


def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """A, B and what is remembered of them: the leading part of each matrix, over the scale."""
    extras.begin(tuning, start.model)
    for path, module in updates(tuning.adapter).items():
        weight_OI = start.dense(path).to(module.A.device)
        b_OR, a_RI = leading(weight_OI, settings.rank, settings.niter, seed_of(start.seed, path))
        module.start_from(b_OR / module.scale**0.5, a_RI / module.scale**0.5)


def updates(adapter: dict[str, nn.Module]) -> dict[str, PiSSA]:
    """The modules that begin from the base, without what is trained beside them."""
    return {path: module for path, module in adapter.items() if isinstance(module, PiSSA)}


def fixed(adapter: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What a run keeps beside what it trains: a resumed one takes A0 and B0 from its checkpoint, not from another SVD."""
    return {f"{path}.{name}": buffer for path, module in updates(adapter).items() for name, buffer in module.named_buffers()}


def check_rank(rank: int, adapter: dict[str, nn.Module]) -> None:
    """Raises LookupError for layers with fewer singular vectors than are asked for."""
    has = {path: min(module.A.shape[1], module.B.shape[0]) for path, module in updates(adapter).items()}
    if small := [path for path, count in has.items() if count < rank]:
        raise LookupError(
            f"method.rank={rank} asks for more singular vectors than {len(small)} of the layers have, {small[0]} the first of them; "
            f"take {min(has.values())} at most, or leave those out of method.targets"
        )


def served_notes(rank: int) -> list[str]:
    """What has to be known about serving before hours are spent."""
    doubled = 2 * rank
    if doubled <= SERVED_BY_DEFAULT:
        return []
    enough = next((served for served in SERVED_RANKS if served >= doubled), None)
    cure = f"vLLM takes it with --max-lora-rank {enough}" if enough else f"vLLM takes {SERVED_RANKS[-1]} at most: merge it for vLLM"
    return [f"rank {rank} is served as a LoRA of rank {doubled}, more than servers take by default ({SERVED_BY_DEFAULT}); {cure}"]
