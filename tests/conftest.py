"""What all tests share: no network, two threads, a tiny model, and the built-in model where it can be had."""

import json
import os
import tempfile
from pathlib import Path

# Before torch, transformers and huggingface_hub read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["MPLBACKEND"] = "Agg"
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's own functions read it too, and other libraries import Triton early
# Hypothesis keeps notes on the source it tests, even without a database: not beside that source.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis"))

import pytest

from tunesmith.errors import UserError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|pad|>", "<|bos|>"]


def write_byte_tokenizer(folder: Path, chat_template: str | None = CHATML) -> None:
    """A byte-level tokenizer of 260 words: ids 0 to 255 are bytes, then `SPECIAL` in order. It adds no BOS by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|im_end|>", pad_token="<|pad|>", model_max_length=512
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a hub would hold it: Llama of 2 layers (hidden 64, 4 heads, 2 key-value heads, 384 words), random fp32
    weights, untied head, a byte-level tokenizer with a ChatML template. Do not write into it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,  # the usual 0.02 makes so small a model's logits nearly flat
        bos_token_id=259,
        eos_token_id=257,
        pad_token_id=258,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    write_byte_tokenizer(folder)
    generation = {"bos_token_id": 259, "eos_token_id": [257], "pad_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def builtin_model() -> Path:
    """The folder of `builtin:smollm2-135m-instruct` (bf16, 135 M parameters); skips where it cannot be had."""
    from tunesmith.models.source import locate

    try:
        return locate("builtin:smollm2-135m-instruct").folder
    except UserError as error:
        pytest.skip(f"the built-in model cannot be had here: {error}")
