"""A frozen linear layer and the low-rank update beside it, as one function; several layers at once where they read the same input.

    y = x·Wᵀ + b + (x·downᵀ)·upᵀ          down [K, I] and up [O, K] are made of what is trained, A [R, I] and B [O, R]

    LoRA     K = R     down = A              up = s·B
    PiSSA    K = 2R    down = [A; A-A0]      up = s·[B-B0, B0]

With P = down·Xᵀ and Q = upᵀ·dYᵀ, both [K, N]:

    dX = dY·W + Qᵀ·down      dA = Q·X, dB = s·(P·dY)ᵀ, of PiSSA the sum of both halves of the one, the first half of the other

A gradient of W is never made. q, k and v read one x: their `down` stand in one matrix, x is read once for all of them and kept
once, and their dX are added up where the first of them lies instead of in two more passes over memory.

Shapes: N tokens, I and O inputs and outputs of a layer, R rank, K rank of what is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.nf4 import weight_of

_EXCHANGED = "_tunesmith_product"


@dataclass(frozen=True, slots=True)
class Update:
    """What stands beside one layer. `down_KI` and `up_OK` are constants here: gradients go to A and B."""

    layer: nn.Module
    A: Tensor  # [R, I], trained
    B: Tensor  # [O, R], trained
    down_KI: Tensor  # in the dtype of x
    up_OK: Tensor  # in the dtype of x, with the scale in it
    scale: float


@dataclass(frozen=True, slots=True)
class Product:
    """Another way to the two products of one frozen matrix, without the bias."""

    forward: Callable[[Tensor], Tensor]  # x [N, I] to x·Wᵀ [N, O]
    backward: Callable[[Tensor], Tensor]  # dY [N, O] to dY·W [N, I]


def exchange(layer: nn.Module, product: Product) -> None:
    """Let the layer's two products be computed in this way wherever an update stands beside it."""
    object.__setattr__(layer, _EXCHANGED, product)


def restore(layer: nn.Module) -> None:
    """The plain way again."""
    vars(layer).pop(_EXCHANGED, None)


def forward_of(layer: nn.Module, x_NI: Tensor) -> Tensor:
    """x·Wᵀ + b of a linear layer: [N, O], a tensor that the caller may add into."""
    bias_O: Any = layer.bias
    product: Product | None = vars(layer).get(_EXCHANGED)
    if product is not None:
        y_NO = product.forward(x_NI)
        return y_NO if bias_O is None else y_NO.add_(bias_O)
    weight_IO = weight_of(layer).T
    return x_NI @ weight_IO if bias_O is None else torch.addmm(bias_O, x_NI, weight_IO)


def backward_of(layer: nn.Module, dy_NO: Tensor, dx_NI: Tensor | None = None) -> Tensor:
    """dY·W: [N, I]; added into `dx_NI` where it is given, by the product itself."""
    product: Product | None = vars(layer).get(_EXCHANGED)
    if product is not None:
        found_NI = product.backward(dy_NO)
        return found_NI if dx_NI is None else dx_NI.add_(found_NI)
    return dy_NO @ weight_of(layer) if dx_NI is None else dx_NI.addmm_(dy_NO, weight_of(layer))


def thin(factor_RI: Tensor, x_NI: Tensor, out_RN: Tensor | None = None) -> Tensor:
    """factor·xᵀ [R, N] for a small R; into `out_RN`, which `thin_space` made, where it is given.

    On a CPU the long side must lie along a row, here and in what is made of the result: a kernel's tile is wider than a rank,
    and [N, R] leaves most of it empty. dY·B and dYᵀ·P take several times as long as their transposes (benchmarks/products.py). A
    GPU fills its tiles otherwise, but wants rows of the operands to begin at multiples of 16 bytes, which N tokens do not keep to:
    there [N, R] lies in memory, and what is given is its transpose.
    """
    if _along_tokens(x_NI.device):
        return torch.mm(factor_RI, x_NI.T, out=out_RN)
    return torch.mm(x_NI, factor_RI.T, out=None if out_RN is None else out_RN.T).T


def thin_space(rank: int, like_NI: Tensor) -> Tensor:
    """Room for several `thin` products, one below the other: [rank, N], as they lie in memory on that device."""
    tokens = like_NI.shape[0]
    return like_NI.new_empty(rank, tokens) if _along_tokens(like_NI.device) else like_NI.new_empty(tokens, rank).T


def _along_tokens(device: torch.device) -> bool:
    return device.type == "cpu"


@torch.no_grad()
def kept(store: dict[str, Any], dtype: torch.dtype, sources: Sequence[Tensor], make: Callable[[], Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """What `make()` gives, in a dtype; made again only where a source was changed, so once for all rows of an optimizer step.

    Not kept while a CUDA graph is being captured: its replays must make the factors anew.
    """
    if sources[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return tuple(made.detach().to(dtype) for made in make())
    key = (dtype, *[(id(source), source._version, source.device) for source in sources])
    if store.get("key") != key:
        store["key"], store["made"] = key, tuple(made.detach().to(dtype) for made in make())
    made: tuple[Tensor, ...] = store["made"]
    return made


def updated(x: Tensor, updates: Sequence[Update], down_KI: Tensor | None = None) -> tuple[Tensor, ...]:
    """What each layer and its update make of the same x: [..., I] to [..., O] each, in x's dtype.

    `down_KI`: the updates' own, one below the other, where the caller has them.
    """
    if down_KI is None:
        down_KI = updates[0].down_KI if len(updates) == 1 else torch.cat([update.down_KI for update in updates])
    trained = [tensor for update in updates for tensor in (update.A, update.B)]
    return _Updated.apply(x, updates, down_KI, *trained)  # type: ignore[no-any-return]


class _Updated(torch.autograd.Function):
    """The formulas at the top of this file."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, updates: Sequence[Update], down_KI: Tensor, *trained: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # an output that nobody uses has no gradient, and costs nothing
        x_NI = x.reshape(-1, x.shape[-1])
        p_KN = thin(down_KI, x_NI)
        outputs = []
        for update, part_KN in zip(updates, _parts(p_KN, updates), strict=True):
            y_NO = forward_of(update.layer, x_NI).addmm_(part_KN.T, update.up_OK.T)
            # no view: autograd forbids to change one of several views in place, and a class may want to
            outputs.append(torch.ops.aten._unsafe_view(y_NO, [*x.shape[:-1], y_NO.shape[-1]]))
        ctx.save_for_backward(x_NI, p_KN, down_KI)
        ctx.updates = updates
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, p_KN, down_KI = ctx.saved_tensors
        updates: Sequence[Update] = ctx.updates
        q_KN = thin_space(down_KI.shape[0], x_NI)
        dx_NI: Tensor | None = None
        dBs: list[Tensor | None] = []
        for update, dy, q, p in zip(updates, dys, _parts(q_KN, updates), _parts(p_KN, updates), strict=True):
            if dy is None:
                q.zero_()
                dBs.append(None)
                continue
            dy_NO = dy.reshape(-1, dy.shape[-1])
            thin(update.up_OK.T, dy_NO, q)
            dBs.append((p[: update.B.shape[1]] @ dy_NO).T.to(update.B.dtype).mul_(update.scale))
            if ctx.needs_input_grad[0]:
                dx_NI = backward_of(update.layer, dy_NO, dx_NI)
        gradients: list[Tensor | None] = []
        for update, dy, dA_KI, dB in zip(updates, dys, _parts(q_KN @ x_NI, updates), dBs, strict=True):
            gradients += [None if dy is None else _halves_added(dA_KI, update.A).to(update.A.dtype), dB]
        dx = None
        if dx_NI is not None:
            dx = dx_NI.addmm_(q_KN.T, down_KI).view(*next(dy for dy in dys if dy is not None).shape[:-1], x_NI.shape[1])
        return dx, None, None, *gradients


def _parts(rows_K: Tensor, updates: Sequence[Update]) -> Sequence[Tensor]:
    """The rows of each update."""
    return rows_K.split([update.up_OK.shape[1] for update in updates])


def _halves_added(dA_KI: Tensor, A: Tensor) -> Tensor:
    return dA_KI if dA_KI.shape == A.shape else dA_KI.unflatten(0, (-1, A.shape[0])).sum(0)
