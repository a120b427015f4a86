"""Small random models of every family that is written as GGUF, as folders, with what transformers itself computes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from tests.conftest import write_byte_tokenizer
from tunesmith.data.rendering.render import Renderer
from tunesmith.export.target import Truth
from tunesmith.models.load import load_tokenizer, quiet, stop_ids

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 258,
    "bos_token_id": 259,
    "eos_token_id": 257,
    "tie_word_embeddings": False,
}
HEADS: dict[str, Any] = SHAPE | {"head_dim": 24}  # not hidden / heads
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONG: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
}  # fmt: skip
GEMMA: dict[str, Any] = HEADS | {"query_pre_attn_scalar": 24, "sliding_window": 16, "tie_word_embeddings": True}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**HEADS, attention_bias=True),
    "llama_tied": lambda: t.LlamaConfig(**SHAPE | {"tie_word_embeddings": True}),
    "llama3": lambda: t.LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "llama_linear": lambda: t.LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    "mistral": lambda: t.MistralConfig(**HEADS, sliding_window=None),
    "qwen2": lambda: t.Qwen2Config(**SHAPE),
    "qwen2_yarn": lambda: t.Qwen2Config(**SHAPE, rope_parameters=YARN),
    "qwen3": lambda: t.Qwen3Config(**HEADS),
    "gemma2": lambda: t.Gemma2Config(**GEMMA | {"num_hidden_layers": 4}, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3": lambda: t.Gemma3TextConfig(
        **GEMMA | {"num_hidden_layers": 7},
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    ),
    "phi3": lambda: t.Phi3Config(**SHAPE, sliding_window=None),
    "phi3_short": lambda: t.Phi3Config(**SHAPE, sliding_window=None, original_max_position_embeddings=384, rope_parameters=LONG | {
        "original_max_position_embeddings": 384,
    }),
    "phi3_long": lambda: t.Phi3Config(**SHAPE, sliding_window=None, original_max_position_embeddings=16, rope_parameters=LONG),
    "phi3_partial": lambda: t.Phi3Config(**SHAPE, sliding_window=None, rope_parameters={
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    }),
    "mixtral": lambda: t.MixtralConfig(**HEADS, num_local_experts=4, sliding_window=None),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(
        **HEADS, num_experts=4, moe_intermediate_size=32, num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[]
    ),
}  # fmt: skip

TALKS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is 12 + 30?"}],
    [
        {"role": "system", "content": "用中文。"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello 👋"},
        {"role": "user", "content": "  bye\n"},
    ],
)


def made_model(name: str, folder: Path, tokenizer: Any = None, sharp: float = 1.0, **changes: Any) -> Path:
    """A folder as a hub would hold it: fp32 weights without small values that would hide differences; a byte tokenizer with ChatML
    unless another one is given. `sharp`: what logits are multiplied by."""
    config = CONFIGS[name]()
    if tokenizer is not None:
        rows = max(tokenizer.get_vocab().values()) + 9  # a class of transformers' own may add tokens when it opens the folder
        changes = {"vocab_size": rows, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | changes
    for key, value in changes.items():
        setattr(config, key, value)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = t.AutoModelForCausalLM.from_config(config).float().eval()
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.data = 2 * noise * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else parameter.data + noise * 0.1
        model.get_output_embeddings().weight.data *= sharp
        model.tie_weights()
        model.save_pretrained(folder)
    if tokenizer is None:
        write_byte_tokenizer(folder)
    else:
        tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": [257 if tokenizer is None else tokenizer.convert_tokens_to_ids("<|im_end|>")]}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def renderer_of(folder: Path) -> Renderer:
    return Renderer(load_tokenizer(folder), stop_ids=stop_ids(folder, None))


@torch.no_grad()
def truth_of(folder: Path, model: Any = None, talks: tuple[list[dict[str, Any]], ...] = TALKS, answer: int = 16) -> Truth:
    """What transformers' own class computes of the folder, or of `model`."""
    with quiet():
        model = model or t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    renderer = renderer_of(folder)
    prompts = [renderer.prompt_ids(talk) for talk in talks]
    answers, margins = [], []
    for ids in prompts:
        row, apart = list(ids), []
        while len(row) < len(ids) + answer:
            best = model(torch.tensor([row])).logits[0, -1].topk(2)
            if int(best.indices[0]) in renderer.stops:
                break
            row.append(int(best.indices[0]))
            apart.append(float(best.values[0] - best.values[1]))
        answers.append(row[len(ids) :])
        margins.append(apart)
    logits = tuple(model(torch.tensor([ids])).logits[0].float() for ids in prompts)
    return Truth(talks, tuple(prompts), logits, tuple(answers), tuple(margins))
