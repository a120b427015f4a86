import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.conftest import write_byte_tokenizer
from tunesmith.methods import method
from tunesmith.methods.settings import Full
from tunesmith.models import load as loading
from tunesmith.train import weights


def rewritten(folder: Path, to: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The tensors of a model folder that was loaded and written again."""
    base = loading.load(folder, dtype=dtype)
    to.mkdir()
    weights.write_model(to, base.model, folder)
    return {name: tensor for file in sorted(to.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def tied(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_keeps_its_names_values_and_files(tiny_llama: Path, tmp_path: Path) -> None:
    (source := tmp_path / "source").mkdir()
    for path in tiny_llama.iterdir():
        shutil.copyfile(path, source / path.name)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "pytorch_model.bin").write_text("stale weights")
    found, wanted = rewritten(source, tmp_path / "out"), load_file(source / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    names = {path.name for path in source.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "transformers refuses a file without it"


def test_a_tied_head_is_written_once(tied: Path, tmp_path: Path) -> None:
    found = rewritten(tied, tmp_path / "out")
    assert "model.embed_tokens.weight" in found and "lm_head.weight" not in found
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_config_names_the_dtype_that_is_in_the_file(tiny_llama: Path, tmp_path: Path) -> None:
    """Readers take the dtype from there, and would round fp32 weights without a word."""
    source = tmp_path / "source"
    shutil.copytree(tiny_llama, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    assert rewritten(source, tmp_path / "out")["lm_head.weight"].dtype == torch.float32
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32
    assert {key: value for key, value in written.items() if "dtype" not in key} == {k: v for k, v in config.items() if "dtype" not in k}


def test_large_models_are_written_in_shards(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_SHARD_BYTES", 200_000)
    found, wanted = rewritten(tiny_llama, tmp_path / "out"), load_file(tiny_llama / "model.safetensors")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)] and len(files) > 1
    assert all(path.stat().st_size < 210_000 for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys() == wanted.keys()
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in wanted.values())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
        ("qwen2_moe", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4,
                       "moe_intermediate_size": 32, "intermediate_size": 64, "shared_expert_intermediate_size": 32}),
    ],
)  # fmt: skip
def test_other_architectures_come_back_as_they_were(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """GPT-2 keeps transposed matrices; experts are stacked in memory and stand one by one in the checkpoint."""
    config = AutoConfig.for_model(kind, vocab_size=384, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    write_byte_tokenizer(tmp_path / "source")
    found, wanted = rewritten(tmp_path / "source", tmp_path / "out"), load_file(tmp_path / "source" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_is_trained_is_what_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    base = loading.load(tiny_llama, dtype=torch.float32)
    tuning = method.build(base.model, Full(), quantized=False)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(1.0)
    weights.write(tmp_path / "model", base, tuning, setting=None)
    found, before = load_file(tmp_path / "model" / "model.safetensors"), load_file(tiny_llama / "model.safetensors")
    assert all(torch.equal(found[name], before[name] + 1.0) for name in before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
