"""How weights are stored in a GGUF file: the kinds, which tensor gets which type, and the packing itself.

llama.cpp packs K-quants with searches of its own; they are called in its library (`ggml_quantize_chunk`), never imitated. Which tensor
gets more bits follows its mixtures: half of the layers, those at both ends and every third between, keep values and the feed-forward's
last matrix in 6 bits, where errors cost the most.
"""

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.export.gguf.weights import Planned

NEEDS_LLAMACPP = "llama.cpp's own code packs this kind: pip install 'tunesmith[llamacpp]'"
LARGEST_F16 = 65504.0
ROUTER = "ffn_gate_inp.weight"


@dataclass(frozen=True, slots=True)
class Kind:
    """`file_type`: llama.cpp's number for the mixture. `max_kl`: mean KL of llama.cpp's next-token distributions from ours, in nats,
    beyond which the file is taken for wrong. `tie`: tokens whose logits are closer are as good as equal. `exact`: weights are rounded so
    little that greedy answers must be ours, but for ties."""

    main: Type
    file_type: int
    max_kl: float
    tie: float = 1e-3
    exact: bool = False


# Two to seven times what SmolLM2-135M costs on 30 positions, the smallest model of all and so the most sensitive: f32 1e-11, f16 2e-6,
# bf16 1e-4 (llama.cpp rounds activations to bf16 too), q8_0 5e-3, q6_k 2e-2, q5_k_m 1e-1, q4_k_m 7e-2, q4_0 6e-1. A wrong file of f16 is
# 1e-2 and more away.
KINDS: dict[str, Kind] = {
    "f32": Kind(Type.F32, 0, 1e-6, exact=True),
    "f16": Kind(Type.F16, 1, 1e-4, tie=1e-2, exact=True),
    "bf16": Kind(Type.BF16, 32, 1e-3, tie=1e-1, exact=True),
    "q8_0": Kind(Type.Q8_0, 7, 2e-2),
    "q4_0": Kind(Type.Q4_0, 2, 1.5),
    "q4_k_m": Kind(Type.Q4_K, 15, 5e-1),
    "q5_k_m": Kind(Type.Q5_K, 17, 4e-1),
    "q6_k": Kind(Type.Q6_K, 18, 1e-1),
}
# where a row is no multiple of 256, the type with as many bits and blocks of 32
_SMALLER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def types(planned: list[Planned], kind: Kind, layers: int, experts: int) -> dict[str, Type]:
    """The type of every tensor, by name. Vectors and routers stay F32."""
    tied = all(each.name != "output.weight" for each in planned)
    result = {}
    for each in planned:
        matrix = len(each.shape) > 1 and each.name.endswith(".weight") and not each.name.endswith(ROUTER)
        result[each.name] = _fitting(_wanted(each, kind, layers, experts, tied), each.columns) if matrix else Type.F32
    return result


def _wanted(each: Planned, kind: Kind, layers: int, experts: int, tied: bool) -> Type:
    """The mixture's type for a matrix, whatever its row's length."""
    if kind.main in (Type.F32, Type.F16, Type.BF16, Type.Q8_0):
        return kind.main
    if each.name == "output.weight" or (tied and each.name == "token_embd.weight"):
        return Type.Q6_K if each.columns % _block(kind.main) == 0 else Type.Q8_0
    number = re.match(r"blk\.(\d+)\.", each.name)
    more = number is not None and kind.main in (Type.Q4_K, Type.Q5_K) and _more_bits(int(number[1]), layers)
    if ".attn_v." in each.name:
        return _values(kind, more, layers, experts)
    if ".ffn_down" in each.name and more:
        return Type.Q6_K
    if ".attn_qkv." in each.name:
        return {Type.Q4_K: Type.Q5_K, Type.Q5_K: Type.Q6_K}.get(kind.main, kind.main)
    if experts == 8 and ".attn_k." in each.name:
        return Type.Q8_0
    if experts == 8 and ".attn_output." in each.name and kind.main == Type.Q4_K:
        return Type.Q5_K
    return kind.main


def _values(kind: Kind, more: bool, layers: int, experts: int) -> Type:
    if experts == 8:  # small beside eight experts
        return Type.Q8_0
    if more:
        return Type.Q6_K
    return Type.Q5_K if layers == 80 and kind.main == Type.Q4_K else kind.main  # of 70B eight query heads share them


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(wanted: Type, columns: int) -> Type:
    if columns % _block(wanted):
        wanted = _SMALLER_BLOCKS.get(wanted, Type.F16)
    return wanted if columns % _block(wanted) == 0 else Type.F16


def _block(kind: Type) -> int:
    return int(gguf.GGML_QUANT_SIZES[kind][0])


def bytes_of(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes that a tensor takes in the file."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def packed(tensor: Tensor, kind: Type, name: str) -> np.ndarray:
    """An fp32 tensor as the file's bytes, uint8 [...]. Raises UserError where F16 cannot hold a value, or llama.cpp is missing."""
    if kind == Type.F32:
        return tensor.numpy().view(np.uint8).reshape(-1)
    if kind == Type.F16:
        if not tensor.abs().max() <= LARGEST_F16:
            raise UserError(f"{name} holds {tensor.abs().max():g}, and f16 ends at {LARGEST_F16:g}; take bf16 or f32")
        return tensor.half().numpy().view(np.uint8).reshape(-1)
    if kind == Type.BF16:
        return tensor.bfloat16().view(torch.int16).numpy().view(np.uint8).reshape(-1)
    rows_OI = np.ascontiguousarray(tensor.numpy().reshape(-1, tensor.shape[-1]))
    if (pack := _llamacpp()) is not None:
        return _in_parallel(pack, rows_OI, kind)
    if kind in (Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.Q5_1):
        return gguf.quants.quantize(rows_OI, kind).reshape(-1)
    raise UserError(NEEDS_LLAMACPP)


def check_installed(kind: str, hidden_size: int) -> None:
    """Raises UserError where a kind cannot be packed here for a model of this width: with `q4_0` the head has a type of more bits."""
    head = kind == "q4_0" and hidden_size % _block(Type.Q6_K) == 0
    if (head or KINDS[kind].main in _SMALLER_BLOCKS) and _llamacpp() is None:
        raise UserError(f"{kind}: {NEEDS_LLAMACPP}")


def check_packing(kinds: set[Type]) -> None:
    """Raises UserError where llama.cpp's library is needed and not there: before anything is written."""
    if any(kind in _SMALLER_BLOCKS for kind in kinds) and _llamacpp() is None:
        raise UserError(NEEDS_LLAMACPP)


def _in_parallel(pack: Callable[..., int], rows_OI: np.ndarray, kind: Type) -> np.ndarray:
    """Rows are packed one by one, so that any division of them gives the same bytes; the library works without Python's lock."""
    count, columns = rows_OI.shape
    row_bytes = bytes_of((1, columns), kind)
    result = np.zeros(count * row_bytes, dtype=np.uint8)
    step = max(-(-count // torch.get_num_threads()), 1)

    def work(first: int) -> None:
        rows = min(step, count - first)
        written = pack(int(kind), rows_OI.ctypes.data, result.ctypes.data, first * columns, rows, columns, None)
        assert written == rows * row_bytes

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, range(0, count, step)))
    return result


@cache
def _llamacpp() -> Any:
    """llama.cpp's function for packing, or None: (type, source, target, first element, rows, columns, importance) -> bytes written."""
    try:
        import xllamacpp.xllamacpp as library
    except ImportError:
        return None
    try:
        pack = ctypes.CDLL(library.__file__).ggml_quantize_chunk
    except (OSError, AttributeError):  # built another way, without its symbols
        return None
    wide = ctypes.c_int64
    pack.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, wide, wide, wide, ctypes.c_void_p]
    pack.restype = ctypes.c_size_t
    return pack
