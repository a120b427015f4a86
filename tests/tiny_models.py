"""Small random models of many families, fp32, made once a process, and documents to feed them."""

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as t

from tunesmith.data.corpus.documents import Documents, flat
from tunesmith.models.load import quiet

VOCABULARY = 96
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS: dict[str, Any] = _SHAPE | {"head_dim": 16}
_WINDOW: dict[str, Any] = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FEW_WORDS: dict[str, Any] = {"vocab_size": VOCABULARY} | _IDS

CONFIGS: dict[str, Any] = {
    "llama": lambda: t.LlamaConfig(**_HEADS),
    "llama_tied": lambda: t.LlamaConfig(**_HEADS, tie_word_embeddings=True),
    "qwen2": lambda: t.Qwen2Config(**_SHAPE),
    "qwen3": lambda: t.Qwen3Config(**_HEADS),
    "mistral": lambda: t.MistralConfig(**_HEADS, sliding_window=7),
    "gemma2": lambda: t.Gemma2Config(**_HEADS, **_WINDOW, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3": lambda: t.Gemma3TextConfig(**_HEADS, **_WINDOW),
    "phi": lambda: t.PhiConfig(**_SHAPE),
    "phi3": lambda: t.Phi3Config(**_SHAPE),
    "mixtral": lambda: t.MixtralConfig(**_HEADS, num_local_experts=4),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(**_HEADS, num_experts=4, moe_intermediate_size=32, num_experts_per_tok=2),
    "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=256, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **_FEW_WORDS),
    "cohere": lambda: t.CohereConfig(**_SHAPE, logit_scale=0.25),
    "granite": lambda: t.GraniteConfig(**_SHAPE, logits_scaling=4.0),
    "gpt_oss": lambda: t.GptOssConfig(
        **_HEADS, **_WINDOW, num_local_experts=4, num_experts_per_tok=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    ),
    "opt": lambda: t.OPTConfig(
        hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64, max_position_embeddings=256,
        dropout=0.0, **_FEW_WORDS,
    ),
    "gpt_neox": lambda: t.GPTNeoXConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, **_FEW_WORDS),
    "starcoder2": lambda: t.Starcoder2Config(**_SHAPE, residual_dropout=0.0, embedding_dropout=0.0),
    "smollm3": lambda: t.SmolLM3Config(**_SHAPE),
    "falcon": lambda: t.FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **_FEW_WORDS),
    "bloom": lambda: t.BloomConfig(hidden_size=64, n_layer=2, n_head=4, **_FEW_WORDS),
    "mpt": lambda: t.MptConfig(d_model=64, n_layers=2, n_heads=4, **_FEW_WORDS),
    "gptj": lambda: t.GPTJConfig(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, **_FEW_WORDS),
    "lfm2": lambda: t.Lfm2Config(**_SHAPE, layer_types=["conv", "full_attention"]),
    "mamba": lambda: t.MambaConfig(hidden_size=64, num_hidden_layers=2, **_FEW_WORDS),
    "llama4": lambda: t.Llama4TextConfig(**_HEADS, num_local_experts=2, intermediate_size_mlp=64),
}  # fmt: skip


def model_class(name: str) -> type:
    """The class that `transformers` takes for a causal language model of this configuration."""
    with torch.device("meta"), quiet():
        return type(t.AutoModelForCausalLM.from_config(CONFIGS[name]()))


@cache
def _made(name: str) -> Any:
    config = CONFIGS[name]()
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config).float().eval()
        for parameter in model.parameters():  # the usual small draw would hide differences; zeros would hide whole paths
            noise = torch.randn(parameter.shape)
            parameter.data = noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter.data + noise * 0.1
        model.tie_weights()
    return model


def tiny(name: str) -> Any:
    """A model of its own for each call: the same values every time, nothing trained, in evaluation mode."""
    model = copy.deepcopy(_made(name))
    return model.requires_grad_(False)


def some_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def some_documents(lengths: list[int], seed: int = 0, learned: float = 0.5) -> Documents:
    """Random documents; about `learned` of the tokens are targets, never the first, always the last."""
    generator = np.random.default_rng(seed)
    starts_D1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    learned_N = generator.random(starts_D1[-1]) < learned
    learned_N[starts_D1[1:] - 1] = True
    learned_N[starts_D1[:-1]] = False
    ids_N = generator.integers(3, VOCABULARY, starts_D1[-1]).astype(np.uint32)
    return made_documents(ids_N, learned_N, starts_D1)


def made_documents(ids_N: np.ndarray, learned_N: np.ndarray, starts_D1: np.ndarray) -> Documents:
    """Documents that begin at `starts_D1`, from the lines of made.jsonl."""
    count = len(starts_D1) - 1
    return flat(ids_N, learned_N, starts_D1[1:], np.zeros(count, np.uint32), np.arange(1, count + 1), ["made.jsonl"])
