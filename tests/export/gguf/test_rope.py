from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.export.gguf.made_models import CONFIGS, LLAMA3, YARN
from tunesmith.errors import UserError
from tunesmith.export.gguf.rope import rope_entries, rope_tensors


def test_llama3_factors_are_transformers_own() -> None:
    config = CONFIGS["llama3"]()
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = torch.tensor([LLAMA3["rope_theta"] ** (-2 * i / 16) for i in range(8)])
    factors = rope_tensors(config, 16)["rope_freqs.weight"]
    np.testing.assert_allclose(factors, (plain / scaled).numpy(), rtol=1e-5)
    assert factors[0] == 1 and factors[-1] == 8
    assert "rope.scaling.type" not in rope_entries(config, "llama", 16)


def test_scalings_that_are_numbers() -> None:
    yarn = rope_entries(CONFIGS["qwen2_yarn"](), "qwen2", 16)
    assert (yarn["rope.scaling.type"], yarn["rope.scaling.factor"], yarn["rope.scaling.original_context_length"]) == ("yarn", 4.0, 128)
    gemma = rope_entries(CONFIGS["gemma3"](), "gemma3", 24)
    assert (gemma["rope.freq_base"], gemma["rope.freq_base_swa"], gemma["rope.scaling.factor"]) == (1e6, 5000.0, 8.0)
    half = rope_entries(CONFIGS["phi3_partial"](), "phi3", 16)
    assert half["rope.dimension_count"] == 8
    long = rope_entries(CONFIGS["phi3_long"](), "phi3", 16)
    assert long["rope.scaling.attn_factor"] == pytest.approx((1 + np.log(512 / 16) / np.log(16)) ** 0.5)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "rope_type 'dynamic' would be lost"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial rotary_factor would be lost"),
        (YARN | {"attention_factor": 1.0}, "attention_factor=1.0"),
        (YARN | {"truncate": False}, "truncate=false"),
        (LLAMA3, "'llama3' would be lost: llama.cpp does not compute it for qwen2"),
    ],
)
def test_scalings_that_llamacpp_does_not_compute(rope: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        rope_entries(Qwen2Config(rope_parameters=dict(rope)), "qwen2", 16)


def test_a_plain_rope_needs_no_tensor() -> None:
    assert rope_tensors(LlamaConfig(), 128) == {}
