"""Heads and sizes of what each layer keeps come from its modules."""

from typing import Any

import pytest
import torch
import transformers as t

from tests.tiny_models import CONFIGS, VOCABULARY, model_class, tiny
from tunesmith.models.attention_layers import AttentionLayer, attention_layers
from tunesmith.models.load import quiet

WITHOUT = ("lfm2", "mamba")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITHOUT])
def test_they_are_what_the_class_puts_into_a_cache(name):
    model = tiny(name)
    cache: Any = t.DynamicCache()
    with torch.no_grad():
        model(torch.arange(3, 8)[None], past_key_values=cache, use_cache=True)
    found = attention_layers(model)
    assert [layer.index for layer in found] == [0, 1] == list(range(len(cache.layers)))
    for layer in found:
        kept = cache.layers[layer.index]
        assert kept.keys.shape == kept.values.shape == (1, layer.heads, 5, layer.size)
        assert "att" in model.get_submodule(layer.path).__class__.__name__.lower()
    with torch.device("meta"), quiet():
        assert attention_layers(model_class(name)(CONFIGS[name]())) == found


def made(config: Any) -> Any:
    with torch.device("meta"), quiet():
        return t.AutoModelForCausalLM.from_config(config)


def test_heads_with_a_size_of_their_own():
    """As Qwen3-0.6B (1,024 channels, 16 heads of 128) and Gemma3-1B (1,152 channels, 4 heads of 256) have them."""
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "intermediate_size": 64, "num_hidden_layers": 1}
    qwen3 = t.Qwen3Config(hidden_size=1024, num_attention_heads=16, num_key_value_heads=8, head_dim=128, **shape)
    assert attention_layers(made(qwen3)) == [AttentionLayer("model.layers.0.self_attn", 0, 8, 128)]
    gemma3 = t.Gemma3TextConfig(hidden_size=1152, num_attention_heads=4, num_key_value_heads=1, head_dim=256, **shape)
    assert attention_layers(made(gemma3)) == [AttentionLayer("model.layers.0.self_attn", 0, 1, 256)]


def test_families_that_are_not_in_the_table_by_what_nearly_all_call_them():
    model = tiny("llama")
    expected = attention_layers(model)
    model.config.model_type = "unheard_of"
    assert attention_layers(model) == expected


@pytest.mark.parametrize("name", WITHOUT)
def test_blocks_without_attention_are_named(name):
    with pytest.raises(LookupError, match=r"of 2 have not; .*layers\.0: it has no attention whose projections are known"):
        attention_layers(tiny(name))


def test_latent_attention_has_no_plain_keys():
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "intermediate_size": 64, "num_hidden_layers": 1, "hidden_size": 64}
    config = t.DeepseekV3Config(
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        first_k_dense_replace=1, **shape,
    )  # fmt: skip
    with pytest.raises(LookupError, match="1 of 1 have not"):
        attention_layers(made(config))


def test_layers_may_differ():
    model = tiny("llama")
    attention = model.model.layers[1].self_attn
    attention.k_proj, attention.v_proj = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    assert [layer.heads for layer in attention_layers(model)] == [2, 4]
    attention.v_proj = torch.nn.Linear(64, 32)
    with pytest.raises(LookupError, match=r"model\.layers\.1: its keys and values differ in size"):
        attention_layers(model)
    attention.v_proj, attention.k_proj = torch.nn.Linear(64, 20), torch.nn.Linear(64, 20)
    with pytest.raises(LookupError, match="its keys have 20 channels, which are no heads of 16"):
        attention_layers(model)
