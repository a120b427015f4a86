from typing import Any

import pytest

from tests.export.gguf.made_models import CONFIGS
from tests.tiny_models import CONFIGS as OTHERS
from tunesmith.errors import UserError
from tunesmith.export.gguf.names import FAMILIES, LONG_ROPE, entries_of, family_of, name_of, notes_of


def made(name: str, **changes: Any) -> Any:
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize(
    ("family", "tensor", "expected"),
    [
        ("llama", "model.layers.12.self_attn.q_proj.weight", ("blk.12.attn_q.weight", None)),
        ("llama", "layers.0.mlp.down_proj.weight", ("blk.0.ffn_down.weight", None)),
        ("llama", "model.embed_tokens.weight", ("token_embd.weight", None)),
        ("llama", "lm_head.weight", ("output.weight", None)),
        ("llama", "model.layers.0.mlp.experts.1.up_proj.weight", ("", None)),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias", ("blk.0.attn_k.bias", None)),
        ("gemma2", "model.layers.0.post_attention_layernorm.weight", ("blk.0.post_attention_norm.weight", None)),
        ("gemma3_text", "model.layers.0.self_attn.k_norm.weight", ("blk.0.attn_k_norm.weight", None)),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight", ("blk.0.ffn_up.weight", None)),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w2.weight", ("blk.0.ffn_down_exps.weight", 3)),
        ("qwen3_moe", "model.layers.0.mlp.experts.3.gate_proj.weight", ("blk.0.ffn_gate_exps.weight", 3)),
        ("qwen3", "visual.patch_embed.weight", ("", None)),
    ],
)
def test_names(family: str, tensor: str, expected: tuple[str, int | None]) -> None:
    assert name_of(tensor, FAMILIES[family]) == expected


def test_another_family_is_refused_with_the_list() -> None:
    with pytest.raises(UserError, match=r"'gpt2' is not written as GGUF; these are: gemma2, gemma3_text, llama"):
        family_of(OTHERS["gpt2"]())


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64, where llama.cpp computes with 24"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "not in llama.cpp's order"),
        ("gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 6]}, "not in llama.cpp's order"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob=false"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "layers without experts"),
    ],
)
def test_settings_that_would_be_lost(name: str, changes: dict[str, Any], said: str) -> None:
    family_of(made(name))
    with pytest.raises(UserError, match=said):
        family_of(made(name, **changes))


def test_what_llamacpp_is_told() -> None:
    config = made("gemma2")
    entries = entries_of(config, family_of(config))
    assert entries["attention.sliding_window"] == 16 and entries["attention.sliding_window_pattern"] == 2
    assert (entries["attn_logit_softcapping"], entries["final_logit_softcapping"]) == (5.0, 3.0)
    assert entries["attention.key_length"] == 24 and entries["attention.head_count_kv"] == 2
    experts = entries_of(made("qwen3_moe"), family_of(made("qwen3_moe")))
    assert (experts["expert_count"], experts["expert_used_count"], experts["expert_feed_forward_length"]) == (4, 2, 32)


def test_what_differs_on_long_texts_is_told() -> None:
    assert notes_of(made("mistral")) == notes_of(made("gemma3")) == notes_of(made("qwen2")) == []
    assert "the last 7 tokens and llama.cpp to all" in notes_of(made("mistral", sliding_window=7))[0]
    assert notes_of(made("phi3_long")) == [LONG_ROPE]
