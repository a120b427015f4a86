import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.export.gguf.made_models import LLAMA3 as LLAMA3_ROPE
from tests.export.gguf.made_models import made_model
from tests.export.gguf.tokenizers_made import byte_level
from tunesmith.errors import UserError
from tunesmith.export.gguf import model_file
from tunesmith.export.gguf.model_file import write_model
from tunesmith.export.gguf.opened import HARD_TEXTS
from tunesmith.export.gguf.splits import GPT2, LLAMA3, QWEN2
from tunesmith.models.gguf import convert
from tunesmith.models.gguf_header import read_header


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama3", "qwen2", "qwen3", "gemma2", "phi3"])
def test_what_is_written_is_what_is_read(name: str, tmp_path: Path) -> None:
    """transformers reads the file by its own tables of names and permutations: they are not ours. What it has no table for (biases of a
    Llama, Mixtral's experts, heads of a size of their own) `convert` refuses, and llama.cpp has to judge alone."""
    changes: dict[str, Any] = {"pad_token_id": 0} if name == "phi3" else {}
    if name in ("llama", "qwen3"):
        changes = {"attention_bias": False, "head_dim": 16 if name == "llama" else 128}  # what the reader takes for granted
    if name == "llama3":
        changes = {"rope_parameters": LLAMA3_ROPE | {"original_max_position_embeddings": 8192}}  # the one length that the reader tries
    tokenizer = byte_level((GPT2,))
    tokenizer.pad_token = "<|im_end|>"
    folder = made_model(name, tmp_path / "model", tokenizer, **changes)
    write_model(folder, tmp_path / "model.gguf", "f32")
    convert(tmp_path / "model.gguf", tmp_path / "again")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor) or (name == "gemma2" and torch.allclose(after[key], tensor, atol=1e-6)), key
    first, second = (json.loads((path / "config.json").read_text(encoding="utf-8")) for path in (folder, tmp_path / "again"))
    for key in ("hidden_size", "num_key_value_heads", "max_position_embeddings", "vocab_size", "rms_norm_eps"):
        assert first[key] == second[key]
    assert second["rope_parameters"]["rope_type"] == first["rope_parameters"]["rope_type"]
    assert second["rope_parameters"]["rope_theta"] == pytest.approx(first["rope_parameters"]["rope_theta"])


@pytest.mark.parametrize("steps", [(GPT2,), ("digits", GPT2), (LLAMA3,), (QWEN2,)])
def test_the_tokenizer_that_is_read_gives_the_same_ids(steps: tuple[str, ...], tmp_path: Path) -> None:
    tokenizer = byte_level(steps)
    folder = made_model("llama_tied", tmp_path / "model", tokenizer)
    write_model(folder, tmp_path / "model.gguf", "f16")
    convert(tmp_path / "model.gguf", tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in (*HARD_TEXTS, "<|im_start|>user\n<think>"):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template


def test_shards_make_the_same_file(tmp_path: Path) -> None:
    folder = made_model("llama", tmp_path / "model")
    one = write_model(folder, tmp_path / "one.gguf", "q8_0")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    for path in folder.glob("*token*"):
        (tmp_path / "sharded" / path.name).write_bytes(path.read_bytes())
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    told: list[str] = []
    many = write_model(tmp_path / "sharded", tmp_path / "many.gguf", "q8_0", told.append)
    assert (many.tensors, many.types, told) == (one.tensors, one.types, [f"tensor 1 of {one.tensors}"])
    assert _tensors(many.file) == _tensors(one.file)


def _tensors(file: Path) -> dict[str, bytes]:
    header, data = read_header(file), file.read_bytes()
    ordered = sorted(header.tensors, key=lambda tensor: tensor.offset)
    ends = [tensor.offset for tensor in ordered[1:]] + [len(data)]
    return {tensor.name: data[tensor.offset : end].rstrip(b"\0") for tensor, end in zip(ordered, ends, strict=True)}


def test_what_the_file_says(tmp_path: Path) -> None:
    folder = made_model("qwen3", tmp_path / "My phi-3 killer", byte_level((QWEN2,)))
    written = write_model(folder, tmp_path / "model.gguf", "f16")
    metadata = read_header(written.file).metadata
    assert metadata["general.architecture"] == written.architecture == "qwen3"
    assert metadata["general.name"] == "My phi 3 killer"  # with phi-3 in its name llama.cpp would tokenise it otherwise
    assert metadata["general.file_type"] == 1 and metadata["qwen3.attention.key_length"] == 24
    assert metadata["tokenizer.ggml.pre"] == "qwen2" and len(metadata["tokenizer.ggml.tokens"]) == metadata["qwen3.vocab_size"]
    assert written.bytes == written.file.stat().st_size and written.types["F16"] == 23


def test_nothing_is_left_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_model("llama", tmp_path / "model")
    with pytest.raises(UserError, match="'q3' is no way to store a GGUF's weights; these are: f32, f16"):
        write_model(folder, tmp_path / "model.gguf", "q3")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight holds 1e\+06, and f16 ends at 65504; take bf16"):
        write_model(folder, tmp_path / "model.gguf", "f16")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_file, "begin", full)
    with pytest.raises(UserError, match=r"model\.gguf cannot be written: No space left on device; free some room"):
        write_model(folder, tmp_path / "model.gguf", "f32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
