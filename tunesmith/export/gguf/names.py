"""The families of models that are written: llama.cpp's name for each, its names for their tensors, and what it must be told of their shape.

llama.cpp computes a family's forward pass in code of its own, from a few numbers in the file. A setting that has no number there would
be lost in silence, so every such setting is refused here, or told where it only matters for long texts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.errors import UserError
from tunesmith.export.gguf.rope import rope_entries, ropes_of

WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
SANDWICH = {  # norms behind attention and feed-forward too
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
ROUTERS = {"mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp"}
EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
EXPERTS |= {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}

_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight")
Entries = dict[str, Any]  # a key without the architecture's name -> value


@dataclass(frozen=True, slots=True)
class Family:
    """`turned`: llama.cpp rotates neighbouring channels of queries and keys, where the checkpoint rotates halves. `offset`: the
    checkpoint's norms multiply by 1 + weight."""

    architecture: str
    layer: dict[str, str] = field(default_factory=lambda: LAYER)
    turned: bool = False
    offset: bool = False
    activation: str = "silu"
    entries: Callable[[Any], Entries] = lambda config: {}
    lost: Callable[[Any], list[str]] = lambda config: []  # settings that would be lost


def family_of(config: Any) -> Family:
    """Raises UserError for a model that llama.cpp does not know, or that it would compute otherwise."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            f"model_type {config.model_type!r} is not written as GGUF; these are: {', '.join(sorted(FAMILIES))}",
            "export it with --to safetensors, which llama.cpp's own converter reads",
        )
    lost = family.lost(config)
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if activation != family.activation:
        lost.append(f"its activation is {activation}, and llama.cpp computes {family.architecture} with {family.activation}")
    if lost:
        raise UserError(*[f"this {config.model_type} model cannot be written as GGUF: {sentence}" for sentence in lost])
    return family


def head_size(config: Any) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def entries_of(config: Any, family: Family) -> Entries:
    """What llama.cpp is told of the model's shape, keys without the architecture's name. Raises UserError for an unknown rope."""
    size = head_size(config)
    common: Entries = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": size,
        "attention.value_length": size,
        "vocab_size": config.vocab_size,
    }
    return common | rope_entries(config, family.architecture, size) | family.entries(config)


def name_of(tensor: str, family: Family) -> tuple[str, int | None]:
    """(llama.cpp's name of a checkpoint's tensor, its number where it is one expert of a stack); ("", None) where it has none."""
    tensor = tensor if tensor.startswith(("model.", "lm_head.")) else f"model.{tensor}"
    if (expert := _EXPERT.fullmatch(tensor)) and expert[3] in EXPERTS and "experts" in family.layer:
        return f"blk.{expert[1]}.{EXPERTS[expert[3]]}.weight", int(expert[2])
    if inside := _IN_LAYER.fullmatch(tensor):
        name = family.layer.get(inside[2])
        return (f"blk.{inside[1]}.{name}.{inside[3]}" if name else ""), None
    path, _, kind = tensor.rpartition(".")
    return (f"{WHOLE[path]}.{kind}" if path in WHOLE else ""), None


def notes_of(config: Any) -> list[str]:
    """What llama.cpp computes otherwise on long texts."""
    rope, _ = ropes_of(config)
    window = _window_note(config)
    return ([window] if window else []) + ([LONG_ROPE] if rope.get("rope_type") == "longrope" else [])


LONG_ROPE = "llama.cpp takes the factors for long texts as soon as its context (-c) is long, the model only where a text is"


def _window_note(config: Any) -> str:
    if FAMILIES[config.model_type].offset:  # Gemma's windows are known to llama.cpp
        return ""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not window or (types is not None and "sliding_attention" not in types):
        return ""
    return f"this model attends to the last {window} tokens and llama.cpp to all: texts longer than that are computed otherwise"


def _gemma_entries(config: Any) -> Entries:
    entries: Entries = {"attention.sliding_window": config.sliding_window}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := getattr(config, name, None)) is not None:
            entries[name] = float(cap)
    if (period := _period(config)) is not None:
        entries["attention.sliding_window_pattern"] = period
    return entries


def _period(config: Any) -> int | None:
    """n where every n-th layer attends to everything and the others to a window, from the first layer on; None where it is otherwise."""
    types = config.layer_types
    for period in range(2, len(types) + 2):
        if all((kind == "full_attention") == ((i + 1) % period == 0) for i, kind in enumerate(types)):
            return period
    return None


def _gemma2_lost(config: Any) -> list[str]:
    return _gemma_lost(config, 46, 2)


def _gemma3_lost(config: Any) -> list[str]:
    lost = _gemma_lost(config, 62, None)
    if getattr(config, "attn_logit_softcapping", None):
        lost.append("attn_logit_softcapping, which llama.cpp knows of Gemma 2 alone")
    return lost


def _gemma_lost(config: Any, layers_of_27b: int, period: int | None) -> list[str]:
    """llama.cpp divides by the root of the head's size, and of hidden / heads in what it takes for the 27B by its number of layers."""
    lost, scale = [], config.query_pre_attn_scalar
    expected = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == layers_of_27b else head_size(config)
    if scale != expected:
        lost.append(f"query_pre_attn_scalar={scale}, where llama.cpp computes with {expected}")
    found = _period(config)
    if found is None or (period is not None and found != period):
        lost.append(f"layer_types are not in llama.cpp's order (every {period or 'n-th'} layer full, the others windowed)")
    if getattr(config, "attention_bias", False):
        lost.append("attention_bias")
    return lost


def _no_bias(config: Any) -> list[str]:
    return ["attention_bias, which llama.cpp does not read for it"] if getattr(config, "attention_bias", False) else []


def _experts(config: Any) -> Entries:
    return {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}


def _qwen_experts(config: Any) -> Entries:
    return {
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def _qwen_experts_lost(config: Any) -> list[str]:
    lost = _no_bias(config)
    if not config.norm_topk_prob:
        lost.append("norm_topk_prob=false: llama.cpp normalises the experts' weights")
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        lost.append("layers without experts")
    return lost


_MOE = LAYER | ROUTERS | {"experts": ""}
_GEMMA = LAYER | SANDWICH
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", turned=True),
    "mistral": Family("llama", turned=True),
    "mixtral": Family("llama", _MOE, turned=True, entries=_experts),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", LAYER | HEAD_NORMS, lost=_no_bias),
    "qwen3_moe": Family("qwen3moe", _MOE | HEAD_NORMS, entries=_qwen_experts, lost=_qwen_experts_lost),
    "gemma2": Family("gemma2", _GEMMA, offset=True, activation="gelu_pytorch_tanh", entries=_gemma_entries, lost=_gemma2_lost),
    "gemma3_text": Family(
        "gemma3", _GEMMA | HEAD_NORMS, offset=True, activation="gelu_pytorch_tanh", entries=_gemma_entries, lost=_gemma3_lost
    ),
    "phi3": Family("phi3", LAYER | FUSED, lost=_no_bias),
}
