"""Frozen linear layers in 4 bits: NF4 with double quantisation (QLoRA, Dettmers et al. 2023, sections 3.1 and 3.2).

The kernels are bitsandbytes' own, so the values are bit for bit those of `bitsandbytes`. What differs is the storage: plain
uint8 parameters and buffers with whole blocks of 64 per row, no tensor subclass, so that saving, moving and sharding need
nothing special. `transformers` quantises tensor by tensor while it streams a checkpoint in: see `Nf4Quantizer`.

On a GPU one launch makes a matrix of its codes (`models/kernels/nf4.py`), compared once with bitsandbytes' own. A product takes its
matrix from a workspace (`models/workspace.py`), or from memory where a budget lets the first layers keep theirs (`keep_dense`).
"""

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.models import kernels as gpu
from tunesmith.models import workspace

BLOCK = 64  # weights that share one scale
NESTED_BLOCK = 256  # scales that share one scale of scales
_CACHED_BLOCKS = 256  # blocks quantised at once on a CPU: 16,384 weights stay in its cache and in one thread


@dataclass
class Quantized:
    """What `quantize` makes of one matrix: codes_OI [out, in/2] uint8, scales [out·in/64] uint8 or fp32, and their own scales."""

    codes_OI: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def to(self, device: torch.device) -> "Quantized":
        """The same codes there; no copy where they are already."""
        moved = [None if part is None else part.to(device) for part in (self.absmax, self.nested_absmax, self.offset)]
        return Quantized(self.codes_OI.to(device), *moved)  # type: ignore[arg-type]


def quantize(weight_OI: Tensor, double: bool) -> Quantized:
    """Quantise a matrix whose rows are whole blocks. Raises AssertionError where they are not."""
    assert weight_OI.shape[1] % BLOCK == 0, weight_OI.shape
    codes, absmax = (_quantize_on_cpu if weight_OI.device.type == "cpu" else _quantize_by_kernel)(weight_OI.contiguous())
    codes_OI = codes.view(weight_OI.shape[0], weight_OI.shape[1] // 2)
    if not double:
        return Quantized(codes_OI, absmax, None, None)
    offset = absmax.mean()
    codes, state = kernels().quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    return Quantized(codes_OI, codes, state.absmax, offset.reshape(1))


def _quantize_by_kernel(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    kernels()
    return torch.ops.bitsandbytes.quantize_4bit(weight_OI, BLOCK, "nf4", torch.uint8)


def _quantize_on_cpu(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The same codes and scales as bitsandbytes' own CPU path, which searches whole matrices and is several times slower."""
    weight_NB = weight_OI.view(-1, BLOCK)
    codes_NB = torch.empty(weight_NB.shape[0], BLOCK // 2, dtype=torch.uint8)
    absmax_N = torch.empty(weight_NB.shape[0])
    for begin in range(0, weight_NB.shape[0], _CACHED_BLOCKS):
        piece = weight_NB[begin : begin + _CACHED_BLOCKS].to(torch.float32, copy=True)  # it is scaled in place
        scale = piece.abs().amax(-1)
        piece.mul_((1.0 / scale.clamp(min=1e-38))[:, None]).clamp_(-1, 1)
        level = torch.zeros(piece.shape, dtype=torch.uint8)
        for bound in _bounds():
            level += piece > bound
        torch.bitwise_or(level[:, ::2] << 4, level[:, 1::2], out=codes_NB[begin : begin + _CACHED_BLOCKS])
        absmax_N[begin : begin + _CACHED_BLOCKS] = scale
    return codes_NB, absmax_N


def dequantize(q: Quantized, shape: tuple[int, int], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The matrix [out, in] that the codes stand for; written into `out`, where it is given and a kernel can."""
    if _has_kernel(q.codes_OI) and _kernel_holds(q, shape, dtype):
        out = torch.empty(shape, dtype=dtype, device=q.codes_OI.device) if out is None else out
        _by_kernel(q, out)
        return out
    return _by_bitsandbytes(q, shape, dtype)


def _has_kernel(codes_OI: Tensor) -> bool:
    """On a GPU, and with numbers in it: a tracer's tensors have none."""
    return _WANTED[0] and gpu.available(codes_OI.device) and type(codes_OI) in (Tensor, nn.Parameter)


def _by_bitsandbytes(q: Quantized, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    kernels()
    absmax = q.absmax
    if q.nested_absmax is not None and q.offset is not None:
        code = _nested_code(absmax.device)
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(absmax, q.nested_absmax, code, NESTED_BLOCK, torch.float32)
        absmax = absmax.add_(q.offset)
    return torch.ops.bitsandbytes.dequantize_4bit(q.codes_OI.view(-1, 1), absmax, BLOCK, "nf4", list(shape), dtype)


def _by_kernel(q: Quantized, out: Tensor) -> None:
    from tunesmith.models.kernels.nf4 import dequantize_into

    device, double = out.device, q.nested_absmax is not None
    code = _nested_code(device) if double else None
    dequantize_into(out, q.codes_OI, q.absmax, _levels_on(device), code, q.nested_absmax, q.offset)


_HOLDS: dict[tuple[torch.device, torch.dtype, bool], bool] = {}
_WANTED = [True]


def use_kernel(wanted: bool) -> None:
    """Whether a GPU's own kernel may be used at all; it is, unless somebody says no."""
    _WANTED[0] = wanted


def _kernel_holds(q: Quantized, shape: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether the kernel makes of these codes what bitsandbytes does, bit for bit; tried once for a device, a dtype and a kind."""
    key = q.codes_OI.device, dtype, q.nested_absmax is not None
    if key not in _HOLDS:
        out = torch.empty(shape, dtype=dtype, device=q.codes_OI.device)
        try:
            _by_kernel(q, out)
            _HOLDS[key] = torch.equal(out, _by_bitsandbytes(q, shape, dtype))
            found = "other values"
        except Exception as error:  # whatever a compiler or a driver may say: the plain way remains
            _HOLDS[key], found = False, str(error).strip().partition("\n")[0] or type(error).__name__
        if not _HOLDS[key]:
            warnings.warn(f"the NF4 kernel is not used, bitsandbytes' own are: {found}", RuntimeWarning, stacklevel=2)
    return _HOLDS[key]


def rounded(weight_OI: Tensor, double: bool, dtype: torch.dtype) -> Tensor:
    """What 4 bits leave of a matrix, in fp32; `dtype` is that of the layer which dequantises it."""
    return dequantize(quantize(weight_OI, double), (weight_OI.shape[0], weight_OI.shape[1]), dtype).float()


@cache
def kernels() -> Any:
    """bitsandbytes, which registers its operators with torch: imported when first needed, since it takes seconds to load."""
    from bitsandbytes import functional

    return functional


def levels() -> Tensor:
    """The 16 NF4 values, rising, fp32."""
    return kernels().get_4bit_type("nf4", device="cpu")


@cache
def _bounds() -> list[float]:
    """Midway between neighbouring NF4 values."""
    values = levels()
    return ((values[:-1] + values[1:]) / 2).tolist()


@cache
def _nested_code(device: torch.device) -> Tensor:
    code: Tensor = kernels().create_dynamic_map().to(device)  # the map that quantize_blockwise uses by default
    return code


@cache
def _levels_on(device: torch.device) -> Tensor:
    return levels().to(device)


class Nf4Linear(nn.Module):
    """A frozen linear layer whose matrix is kept as NF4 codes and dequantised whenever it is used."""

    bias: nn.Parameter | None
    absmax: Tensor
    nested_absmax: Tensor | None
    offset: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool, double: bool, dtype: torch.dtype, transposed: bool = False):
        super().__init__()
        assert in_features % BLOCK == 0
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.transposed = transposed  # the checkpoint keeps [in, out], as GPT-2's Conv1D does
        scales = in_features * out_features // BLOCK
        self.weight = nn.Parameter(torch.empty(out_features, in_features // 2, dtype=torch.uint8), requires_grad=False)
        self.register_buffer("absmax", torch.empty(scales, dtype=torch.uint8 if double else torch.float32))
        self.register_buffer("nested_absmax", torch.empty(-(-scales // NESTED_BLOCK)) if double else None)
        self.register_buffer("offset", torch.empty(1) if double else None)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None)
        self._dense: _Dense | None = None  # no buffer: it is not saved, moved or counted as the model's

    def quantized(self) -> Quantized:
        return Quantized(self.weight, self.absmax, self.nested_absmax, self.offset)

    @property
    def is_double(self) -> bool:
        """Whether the scales are in 8 bits too."""
        return self.nested_absmax is not None

    def requantised(self, weight_OI: Tensor) -> Quantized:
        """The codes that this layer would hold for another matrix [out, in]; it keeps its own."""
        assert weight_OI.shape == (self.out_features, self.in_features), weight_OI.shape
        return quantize(weight_OI.to(self.weight.device), self.is_double)

    def rounded(self, weight_OI: Tensor) -> Tensor:
        """What this layer would make of another matrix, in fp32."""
        return rounded(weight_OI.to(self.weight.device), self.is_double, self.dtype)

    @torch.no_grad()
    def exchange(self, codes: Quantized) -> Quantized:
        """Hold these codes from now on; those held until now, where these were. On one device nothing is copied."""
        held, here = self.quantized().to(codes.codes_OI.device), codes.to(self.weight.device)
        self.weight = nn.Parameter(here.codes_OI, requires_grad=False)
        self.absmax, self.nested_absmax, self.offset = here.absmax, here.nested_absmax, here.offset
        return held

    def dequantized(self) -> Tensor:
        """The matrix [out, in] in the layer's dtype, the caller's own."""
        return dequantize(self.quantized(), (self.out_features, self.in_features), self.dtype)

    def matrix(self) -> Tensor:
        """The same to be read only: the one that is kept, where it is that of the codes held now, or one in a workspace."""
        if self._dense is not None:
            if self._dense.codes == self._state():
                return self._dense.weight_OI
            self._dense = None
        shape = self.out_features, self.in_features
        out = workspace.lend(shape, self.dtype, self.weight.device) if _has_kernel(self.weight) else None
        return dequantize(self.quantized(), shape, self.dtype, out)

    def _state(self) -> tuple[int, ...]:
        """Changes with the codes: others are exchanged for them, loaded into them, or they move to another device."""
        parts = (self.weight, self.absmax, self.nested_absmax, self.offset)
        return tuple(number for part in parts if part is not None for number in (part.data_ptr(), part._version))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            y = _FrozenProduct.apply(x, self)
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self.matrix(), self.bias)


@dataclass(frozen=True, slots=True)
class _Dense:
    """A matrix that is kept, and of which codes it was made."""

    weight_OI: Tensor
    codes: tuple[int, ...]


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ that keeps the codes, not the dequantised matrix, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Nf4Linear) -> Tensor:
        ctx.linear = linear
        return nn.functional.linear(x, linear.matrix())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return dy @ ctx.linear.matrix(), None


def keep_dense(model: nn.Module, budget_bytes: int) -> int:
    """Let the first NF4 layers keep their matrices, as many as the budget holds, and no others; returns the bytes kept.

    The numbers are the same to the bit. `keep_dense(model, 0)` gives all memory back; so does, layer by layer, whatever changes
    codes. Called again with what it returned, it keeps the same layers.
    """
    kept, open_ = 0, True
    for layer in model.modules():
        if not isinstance(layer, Nf4Linear):
            continue
        size = layer.in_features * layer.out_features * layer.dtype.itemsize
        open_ = open_ and kept + size <= budget_bytes
        state = layer._state()
        if not open_:
            layer._dense = None
        elif layer._dense is None or layer._dense.codes != state:
            layer._dense = None
            layer._dense = _Dense(layer.dequantized(), state)
        kept += size if open_ else 0
    return kept


def dense_bytes(model: nn.Module) -> int:
    """What matrices that are kept take: beside the model, and not among its parameters and buffers."""
    layers = [layer for layer in model.modules() if isinstance(layer, Nf4Linear) and layer._dense is not None]
    return sum(layer.in_features * layer.out_features * layer.dtype.itemsize for layer in layers)


def weight_of(linear: nn.Module) -> Tensor:
    """The matrix [out, in] of any linear layer that an adapter can stand beside, to be read and never written to.

    An NF4 layer's is made on each call where it is not kept; for GPT-2's `Conv1D`, which keeps [in, out], it is a transposed view.
    """
    if isinstance(linear, Nf4Linear):
        return linear.matrix()
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight.T if isinstance(linear, Conv1D) else weight


def is_nf4(module: nn.Module) -> bool:
    """Whether its matrix is kept as NF4 codes."""
    return isinstance(module, Nf4Linear)


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can stand beside it: exactly these classes, since a subclass may compute something else.

    Falcon's own class adds its bias in a step of its own, and is otherwise `nn.Linear`.
    """
    return type(module) in (nn.Linear, Conv1D, Nf4Linear) or type(module).__name__ == "FalconLinear"


def is_transposed(linear: nn.Module) -> bool:
    """Whether the checkpoint keeps the matrix as [in, out]."""
    return isinstance(linear, Conv1D) or (isinstance(linear, Nf4Linear) and linear.transposed)


def shape_of(linear: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features  # type: ignore[return-value]


def fits(in_features: int) -> bool:
    """Whether rows of this length are whole blocks."""
    return in_features % BLOCK == 0


@register_quantization_config("tunesmith_nf4")
class Nf4Config(QuantizationConfigMixin):
    """Which linear layers are kept as NF4: those at `paths`."""

    def __init__(self, paths: tuple[str, ...] = (), double: bool = True, **kwargs: Any):
        self.quant_method = "tunesmith_nf4"  # type: ignore[assignment]
        self.paths, self.double = frozenset(paths), double


@register_quantizer("tunesmith_nf4")
class Nf4Quantizer(HfQuantizer):
    """Hooks into `from_pretrained`: layers are exchanged on the meta device, each tensor is quantised as it is read."""

    quantization_config: Nf4Config

    def __init__(self, quantization_config: Nf4Config, **kwargs: Any):
        super().__init__(quantization_config, **(kwargs | {"pre_quantized": False}))

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and path in self.quantization_config.paths

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        config = self.quantization_config
        with torch.device("meta"):
            for path in config.paths:
                linear = model.get_submodule(path)
                dtype: Any = linear.weight.dtype
                layer = Nf4Linear(*shape_of(linear), linear.bias is not None, config.double, dtype, isinstance(linear, Conv1D))
                model.set_submodule(path, layer)

    def get_quantize_ops(self) -> Any:
        return _QuantizeOnLoad(self.quantization_config.double)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _QuantizeOnLoad:
    def __init__(self, double: bool):
        self.double = double

    def convert(self, tensors: dict[str, Any], *, model: nn.Module, **kwargs: Any) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, value in tensors.items():
            weight = value[0] if isinstance(value, list) else value
            path = name.rpartition(".")[0]
            layer: Any = model.get_submodule(path)
            q = quantize((weight.T if layer.transposed else weight).to(layer.dtype), self.double)
            parts = {"weight": q.codes_OI, "absmax": q.absmax, "nested_absmax": q.nested_absmax, "offset": q.offset}
            result |= {f"{path}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
        return result
