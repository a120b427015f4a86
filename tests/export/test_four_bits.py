import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from tests.conftest import write_byte_tokenizer
from tunesmith.errors import UserError
from tunesmith.export import four_bits
from tunesmith.models import load as loading

IDS = torch.arange(3, 40)[None] * 7 % 256


def bfloat_model(folder: Path, shard: str = "5GB") -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=384, initializer_range=0.1, **sizes)).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder, max_shard_size=shard)
    write_byte_tokenizer(folder)
    return folder


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_transformers_reads_the_codes_that_ours_would_be(shard: str, tmp_path: Path) -> None:
    folder = bfloat_model(tmp_path / "model", shard)
    ours = loading.load(folder, dtype=torch.float32).model
    four_bits.round_in_memory(ours, folder)
    before = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    facts = four_bits.quantise(folder)
    assert facts["quantised_tensors"] == 14 and facts["bytes"] < before == facts["bytes_unquantised"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    theirs, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert theirs.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert type(theirs.lm_head) is torch.nn.Linear, "the head stays as it is"
    four_bits.compute_in_fp32(theirs)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, rtol=1e-4, atol=1e-4)


def test_the_index_of_several_files_is_right(tmp_path: Path) -> None:
    folder = bfloat_model(tmp_path / "model", "60KB")
    four_bits.quantise(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == held and len(set(held.values())) > 1
    total = sum(tensor.numel() * tensor.element_size() for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    assert index["metadata"]["total_size"] == total


def test_what_is_not_written_is_refused(tmp_path: Path) -> None:
    GPT2Config(n_embd=64, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="keeps its matrices transposed"):
        four_bits.check(tmp_path / "gpt2")
    LlamaConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match="whole blocks of 64"):
        four_bits.check(tmp_path / "odd")
