from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.errors import UserError
from tunesmith.export.gguf import quantise
from tunesmith.export.gguf.quantise import KINDS, bytes_of, check_installed, check_packing, packed, types
from tunesmith.export.gguf.weights import Planned

# relative error (root mean square) of normally distributed weights
ERRORS = {Type.Q8_0: 6e-3, Type.Q6_K: 2e-2, Type.Q5_K: 4e-2, Type.Q5_1: 5e-2, Type.Q5_0: 5e-2, Type.Q4_K: 8e-2, Type.Q4_0: 1e-1}
K_QUANTS = {Type.Q4_K, Type.Q5_K, Type.Q6_K}


def planned(columns: int = 512, layers: int = 16, tied: bool = False) -> list[Planned]:
    names = ["token_embd.weight", "output_norm.weight"] + ([] if tied else ["output.weight"])
    for i in range(layers):
        names += [f"blk.{i}.{name}.weight" for name in ("attn_q", "attn_v", "ffn_down", "ffn_gate_inp", "attn_qkv")] + [
            f"blk.{i}.attn_q.bias"
        ]
    return [Planned(name, (64, columns) if name.endswith(".weight") and "norm" not in name else (64,), (name,)) for name in names]


def test_a_mixture_keeps_more_bits_where_errors_cost_more() -> None:
    found = types(planned(), KINDS["q4_k_m"], 16, 0)
    more = [i for i in range(16) if found[f"blk.{i}.attn_v.weight"] == Type.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]  # an eighth at each end, every third between
    assert more == [i for i in range(16) if found[f"blk.{i}.ffn_down.weight"] == Type.Q6_K]
    assert found["output.weight"] == Type.Q6_K and found["token_embd.weight"] == Type.Q4_K
    assert found["blk.3.attn_q.weight"] == found["blk.2.ffn_down.weight"] == Type.Q4_K
    assert found["blk.3.attn_qkv.weight"] == Type.Q5_K
    assert found["blk.3.attn_q.bias"] == found["output_norm.weight"] == found["blk.3.ffn_gate_inp.weight"] == Type.F32


@pytest.mark.parametrize(
    ("kind", "columns", "expected"),
    [
        ("q4_k_m", 512, ("Q6_K", "Q4_K")), ("q4_k_m", 576, ("Q8_0", "Q5_0")), ("q5_k_m", 576, ("Q8_0", "Q5_1")),
        ("q6_k", 576, ("Q8_0", "Q8_0")),
        ("q4_0", 512, ("Q6_K", "Q4_0")), ("q4_0", 576, ("Q8_0", "Q4_0")), ("q8_0", 576, ("Q8_0", "Q8_0")), ("q8_0", 50, ("F16", "F16")),
        ("bf16", 50, ("BF16", "BF16")), ("q4_k_m", 50, ("F16", "F16")),
    ],
)  # fmt: skip
def test_rows_that_are_no_whole_blocks(kind: str, columns: int, expected: tuple[str, str]) -> None:
    found = types(planned(columns, tied=True), KINDS[kind], 16, 0)
    assert (found["token_embd.weight"].name, found["blk.3.attn_q.weight"].name) == expected


def test_beside_eight_experts_attention_is_small() -> None:
    found = types(planned(), KINDS["q4_k_m"], 16, 8)
    assert found["blk.3.attn_v.weight"] == Type.Q8_0


@pytest.mark.parametrize("kind", ERRORS)
def test_packing(kind: Type) -> None:
    pytest.importorskip("xllamacpp")
    weights = torch.randn(7, 512, generator=torch.Generator().manual_seed(0))
    data = packed(weights, kind, "x")
    assert data.nbytes == bytes_of((7, 512), kind)
    back = gguf.quants.dequantize(data.reshape(7, -1), kind)
    error = np.linalg.norm(back - weights.numpy()) / np.linalg.norm(weights.numpy())
    assert ERRORS[kind] / 4 < error < ERRORS[kind]


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_any_number_of_threads_packs_the_same(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    weights = torch.randn(10, 256, generator=torch.Generator().manual_seed(0))
    rows = [packed(row[None], Type.Q4_K, "x") for row in weights]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert np.array_equal(packed(weights, Type.Q4_K, "x"), np.concatenate(rows))


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0])
def test_without_llamacpp_the_formats_own_package_packs(kind: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    weights = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    theirs = packed(weights, kind, "x")
    monkeypatch.setattr(quantise, "_llamacpp", lambda: None)
    assert np.array_equal(packed(weights, kind, "x"), theirs)
    for refused in (
        lambda: packed(weights, Type.Q4_K, "x"),
        lambda: check_packing({Type.F32, Type.Q6_K}),
        lambda: check_installed("q4_k_m", 64),
    ):
        with pytest.raises(UserError, match=r"pip install 'tunesmith\[llamacpp\]'"):
            refused()
    check_packing({Type.F32, kind})
    check_installed("q8_0", 256)
    check_installed("q4_0", 96)
    with pytest.raises(UserError, match="q4_0"):
        check_installed("q4_0", 256)


def test_floats() -> None:
    weights = torch.tensor([[1.0, -2.5, 3.14159, 1e-3]])
    for kind, dtype in ((Type.F32, torch.float32), (Type.F16, torch.float16), (Type.BF16, torch.bfloat16)):
        data: Any = packed(weights, kind, "x")
        assert torch.equal(torch.from_numpy(data.copy()).view(dtype), weights.to(dtype)[0])
    for value in (7e4, float("nan")):
        with pytest.raises(UserError, match="take bf16 or f32"):
            packed(torch.tensor([[1.0, value]]), Type.F16, "x")
