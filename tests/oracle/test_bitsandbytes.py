"""NF4 and 8-bit moments against bitsandbytes itself."""

from typing import Any

import pytest
import torch
from bitsandbytes import functional as bnb
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.tiny_models import some_ids, tiny
from tunesmith.models import load as loading
from tunesmith.models.load import quiet
from tunesmith.models.nf4 import Nf4Linear, dequantize, quantize

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def odd_matrix(rows, inner, dtype):
    """Outliers, a row of zeros, a block of zeros, a block of one repeated value, tiny and tied values."""
    torch.manual_seed(rows)
    weight = torch.randn(rows, inner) * torch.rand(rows, 1).mul(6).exp2() * 0.01
    weight[0, 5] = 3.0
    weight[rows // 2] = 0.0
    weight[-1, :64] = 0.25
    weight[-1, -64:] *= 1e-6
    weight[1 % rows, :64] = torch.linspace(-1, 1, 64)
    return weight.to(dtype)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 64), (7, 64), (5, 192), (33, 576), (300, 128)])
def test_codes_scales_and_values_are_bit_for_bit_theirs(rows, inner, dtype, double):
    weight_OI = odd_matrix(rows, inner, dtype)
    codes, state = bnb.quantize_4bit(weight_OI, blocksize=64, compress_statistics=double, quant_type="nf4")
    ours: Any = quantize(weight_OI, double)
    assert torch.equal(ours.codes_OI.flatten(), codes.flatten())
    assert torch.equal(ours.absmax, state.absmax)
    if double:
        assert torch.equal(ours.nested_absmax, state.state2.absmax) and torch.equal(ours.offset, state.offset.reshape(1))
    else:
        assert ours.nested_absmax is None and ours.offset is None
    assert torch.equal(dequantize(ours, (rows, inner), dtype), bnb.dequantize_4bit(codes, state))


def test_the_row_of_zeros_stays_zero():
    weight_OI = torch.randn(4, 128)
    weight_OI[2] = 0
    assert dequantize(quantize(weight_OI, False), (4, 128), torch.float32)[2].abs().max() == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models as a hub would hold them: without a tokenizer, which plays no part here."""
    found = {}
    for name in ("llama", "qwen2", "gpt2"):
        found[name] = tmp_path_factory.mktemp(name)
        tiny(name).save_pretrained(found[name])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_loaded_model_gives_the_logits_of_transformers_with_bitsandbytes(name, double, dtype, folders, monkeypatch):
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)
    theirs_config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype
    )
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(folders[name], quantization_config=theirs_config, dtype=dtype)
    base = loading.load(folders[name], dtype=dtype, quantize=True, double_quant=double)
    assert base.quantized and base.notes == []
    layers = {path: layer for path, layer in base.model.named_modules() if isinstance(layer, Nf4Linear)}
    assert len(layers) == 14
    for path, layer in layers.items():
        reference: Any = theirs.get_submodule(path).weight
        assert torch.equal(layer.dequantized(), bnb.dequantize_4bit(reference.data, reference.quant_state))
    ids = some_ids(20)[None]
    with torch.no_grad():
        ours, expected = base.model(ids).logits, theirs(ids).logits
    torch.testing.assert_close(ours, expected, rtol=2e-2, atol=4e-2 if dtype == torch.bfloat16 else 1e-5)


def test_conv1d_is_quantised_along_its_inputs(folders, monkeypatch):
    """The checkpoint keeps [in, out]; what is quantised in blocks is [out, in], as for every other layer."""
    monkeypatch.setattr(loading, "load_tokenizer", lambda folder: None)
    base = loading.load(folders["gpt2"], dtype=torch.float32, quantize=True)
    plain = tiny("gpt2")
    for path in ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"):
        layer, original = base.model.get_submodule(path), plain.get_submodule(path)
        assert isinstance(layer, Nf4Linear) and layer.transposed
        codes, state = bnb.quantize_4bit(original.weight.T.contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        assert torch.equal(layer.dequantized(), bnb.dequantize_4bit(codes, state))
        original.weight.data = layer.dequantized().T.contiguous()
    for path, layer in base.model.named_modules():
        if isinstance(layer, Nf4Linear):
            plain.get_submodule(path).weight.data = layer.dequantized().T.contiguous()
    ids = some_ids(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
