"""The rows of a job as torchtune reads data: components that its configuration names."""

import json
from pathlib import Path

from chats import conversations
from torchtune.datasets import PackedDataset
from transformers import AutoTokenizer


class Tokenizer:
    """What a recipe asks a tokenizer for: which token pads, and how long a row may be."""

    def __init__(self, folder, max_seq_len):
        self.own = AutoTokenizer.from_pretrained(folder)
        self.pad_id, self.max_seq_len = self.own.pad_token_id or 0, max_seq_len


def rows(tokenizer, rows_file, packed=True):
    """Packed rows of whole conversations; the last message is learned."""
    found = []
    for messages in conversations(rows_file):
        prompt = tokenizer.own.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        text = tokenizer.own.apply_chat_template(messages, tokenize=False)
        tokens = tokenizer.own(text, add_special_tokens=False)["input_ids"][: tokenizer.max_seq_len]
        front = len(tokenizer.own(prompt, add_special_tokens=False)["input_ids"])
        found.append({"tokens": tokens, "labels": [-100] * front + tokens[front:]})
    return PackedDataset(found, max_seq_len=tokenizer.max_seq_len, padding_idx=tokenizer.pad_id, split_across_pack=False)


def shape(folder):
    """The arguments of its llama builder for a model's folder."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": config["max_position_embeddings"],
        "norm_eps": config["rms_norm_eps"],
        "rope_base": int((config.get("rope_parameters") or config).get("rope_theta", 10000)),
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
