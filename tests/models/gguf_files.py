"""GGUF files for tests, made from the tiny Llama by the format's own writer."""

from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
THETA = 50000.0


def write_gguf(
    path: Path,
    folder: Path,
    *,
    kind: str = "F32",
    tied: bool = False,
    split: str = "smollm",
    rope_freqs: list[float] | None = None,
    leave_out: str = "",
    **extra: Any,
) -> dict[str, np.ndarray]:
    """Write the model in `folder` as `path`; the weights as a reader should give them back, by transformers' names."""
    import gguf
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(384)
    _add_tokenizer(writer, AutoTokenizer.from_pretrained(folder), split)
    for key, value in extra.items():
        writer.add_string(key.replace("__", "."), value) if isinstance(value, str) else writer.add_uint32(key.replace("__", "."), value)
    expected = {}
    for name, weights in load_file(folder / "model.safetensors").items():
        if (tied and name == "lm_head.weight") or (leave_out and leave_out in name):
            continue
        parts = name.split(".")
        gguf_name = f"blk.{parts[2]}.{NAMES['.'.join(parts[3:])]}" if parts[1] == "layers" else NAMES[name]
        stored = _interleaved(weights, 4 if "q_proj" in name else 2) if "q_proj" in name or "k_proj" in name else weights
        if weights.ndim == 1 or kind == "F32":
            writer.add_tensor(gguf_name, stored.astype(np.float32))
            expected[name] = weights
            continue
        packed = gguf.quantize(stored, quantisation)
        back = gguf.dequantize(packed, quantisation)
        expected[name] = _apart(back, 4 if "q_proj" in name else 2) if stored is not weights else back
        writer.add_tensor(gguf_name, packed, raw_dtype=quantisation)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.array(rope_freqs, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add_tokenizer(writer: Any, tokenizer: Any, split: str) -> None:
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])] + ["ĠĠ"]
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words + [f"[unused{i}]" for i in range(384 - len(words))])
    writer.add_token_types([3 if word in special else 1 for word in words] + [5] * (384 - len(words)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(259)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
    writer.add_chat_template(tokenizer.chat_template)


def _interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head as llama.cpp has them for rope: pairs side by side; transformers keeps the two halves apart."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def _apart(weights: np.ndarray, heads: int) -> np.ndarray:
    return weights.reshape(heads, -1, 2, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)
