"""LoRA: a frozen matrix W gets a trained low-rank update beside it (Hu et al. 2021, arXiv:2106.09685, section 4.1).

    y = W·x + s·B·(A·x)          s = alpha / r            (rank-stabilised: alpha / √r, Kalajdzievski 2023, arXiv:2312.03732)

           ┌────────── W [out, in], frozen; bf16, fp32 or NF4 ──────────┐
      x ───┤                                                            ├──(+)── y
           └── A [r, in] ──────────────► B [out, r] ────────────── · s ─┘

A starts as a Kaiming-uniform draw, B as zeros, so the first output is the base's. Over an NF4 base this is QLoRA (Dettmers et
al. 2023): the base is a matter of `models/load.py`, not of this file. LoRA+ (Hayou et al. 2024, arXiv:2402.12354) gives B a
higher learning rate.

Cost: r·(in + out) parameters a layer; forward and backward 4N instead of 6N FLOP a token, since no gradient of W is made.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods.parts import extras
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import products, slots
from tunesmith.models.draws import stream
from tunesmith.models.products import Update, kept

NF4 = True  # trains over an NF4 base
LEARNING_RATES = {576: 0.0021, 3072: 1e-4}  # by channels of the model


class LoRA(nn.Module):
    """The update beside one linear layer. Owns A and B in fp32 and nothing else; the layer is lent for the call."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, dropout: float = 0.0, device: Any = None):
        super().__init__()
        self.training = False  # `Tuning.train` turns dropout on; whoever only serves an adapter must not have to turn it off
        self.scale, self.dropout = scale, dropout
        self.A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32, device=device))
        self.B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32, device=device))
        self.plain = False  # by plain operators, with which the fast way is compared
        self._factors: dict[str, Any] = {}

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """What the layer and its update make of x: [..., in] to [..., out], in x's dtype."""
        if not torch.compiler.is_compiling() and (update := self.low_rank(base, x.dtype)) is not None:
            return products.updated(x, [update])[0]
        read = nn.functional.dropout(x, self.dropout, self.training)
        added = nn.functional.linear(nn.functional.linear(read, self.A.to(x.dtype)), self.B.to(x.dtype))
        return slots.own_forward(base, x) + self.scale * added

    def low_rank(self, base: nn.Module, dtype: torch.dtype) -> Update | None:
        """What stands beside the layer; None where it is computed alone: plainly, or because each layer drops inputs of its own."""
        if self.plain or (self.dropout and self.training):
            return None
        down_RI, up_OR = kept(self._factors, dtype, (self.A, self.B), lambda: (self.A, self.scale * self.B))
        return Update(base, self.A, self.B, down_RI, up_OR, self.scale)

    def factors(self, layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """(down [R, in], up [out, R] with the scale in it, None) in fp32, for products of many adapters at once."""
        return self.A, self.scale * self.B, None

    def folded(self, weight_OI: Tensor) -> Tensor:
        """W + s·B·A in fp32, [out, in]."""
        return weight_OI.float() + self.scale * (self.B.float() @ self.A.float())


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    """s, by which B·A is multiplied: alpha/r, or alpha/√r."""
    return alpha / rank**0.5 if rslora else alpha / rank


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The modules, by path, without values. Raises LookupError where a target is not in the model."""
    if settings.init == "orthogonal" and settings.rank % 2:
        raise LookupError(f"method.init=orthogonal needs an even rank, not {settings.rank}: A and B each take half of one orthogonal basis")
    return assemble(model, settings, LoRA, device)


def assemble(model: Any, settings: Any, make: Callable[..., nn.Module], device: Any) -> Tuning:
    """What LoRA and its kin are built of: `make(in, out, rank, scale, dropout, device)` beside each target, and what is trained
    besides. Raises LookupError."""
    targets = [] if settings.targets == "all" else settings.targets
    if embeddings := [target for target in targets if slots.is_embedding(model, target)]:
        raise LookupError(
            f"method.targets: {embeddings[0]} is an embedding, a table and no product that an update could stand beside; take "
            f"method.trainable_tokens=[...] for some of its rows, or method.modules_to_save=[{embeddings[0]}] for all of them"
        )
    places, notes = slots.select(model, settings.targets)
    alpha = 2.0 * settings.rank if settings.alpha == "auto" else float(settings.alpha)
    scale = scale_of(alpha, settings.rank, settings.rslora)
    adapter: dict[str, nn.Module] = {}
    for place in places:
        adapter[place.path] = make(place.in_features, place.out_features, settings.rank, scale, getattr(settings, "dropout", 0.0), device)
    besides = extras.build(model, settings.trainable_tokens, settings.modules_to_save, device)
    if both := sorted(set(adapter) & set(besides)):
        raise LookupError(f"modules_to_save: {both[0]} is also a target; leave it out of one of them")
    adapter |= besides
    parameters = dict(slots.indexed(adapter))
    ratios = {name: settings.plus_ratio for name in parameters if name.endswith(".B")} if settings.plus_ratio != 1 else {}
    return Tuning(adapter, parameters, ratios, notes)


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """First values of A and B by `settings.init`; of what is trained besides, the model's own."""
    FIRST_VALUES[settings.init](tuning, start.seed)
    extras.begin(tuning, start.model)


def kaiming(tuning: Tuning, seed: int) -> None:
    """A by Kaiming-uniform with bound 1/√in (what `peft` draws too), B zero; each path has its own stream of numbers."""
    for name, A, B in _pairs(tuning):
        bound = A.shape[1] ** -0.5
        A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=stream(seed, name)))
        B.zero_()


def gaussian(tuning: Tuning, seed: int) -> None:
    """A normal with deviation 1/r, as `peft` draws it, B zero."""
    for name, A, B in _pairs(tuning):
        A.copy_(torch.empty(A.shape).normal_(std=1 / A.shape[0], generator=stream(seed, name)))
        B.zero_()


def orthogonal(tuning: Tuning, seed: int) -> None:
    """A and B in the spans of two halves of one orthogonal basis of the r dimensions between them, so that B·A = 0 although
    neither is zero: both have a gradient at the first step. The factor 1/10 is `peft`'s."""
    for name, A, B in _pairs(tuning):
        rank, numbers = A.shape[0], stream(seed, name)
        basis = torch.linalg.qr(torch.randn(rank, rank, generator=numbers)).Q
        A.copy_(basis[0::2].T @ torch.randn(rank // 2, A.shape[1], generator=numbers) / 10)
        B.copy_(torch.randn(B.shape[0], rank // 2, generator=numbers) @ basis[1::2] / 10)


FIRST_VALUES: dict[str, Callable[[Tuning, int], None]] = {"kaiming": kaiming, "gaussian": gaussian, "orthogonal": orthogonal}


def _pairs(tuning: Tuning) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name of A, A, B) of every update."""
    for path, module in tuning.adapter.items():
        if hasattr(module, "B"):
            yield f"{path}.A", module.A, module.B  # type: ignore[misc]
