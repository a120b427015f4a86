import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.export.tiny_runs import run_of
from tests.runs import own_cache  # noqa: F401
from tunesmith.export.source import describe

IDS = torch.arange(3, 40)[None] * 7 % 256
METHODS = {"lora": {}, "pissa": {"method": {"name": "pissa", "rank": 4}}, "qlora": {"method": {"name": "qlora", "rank": 4}}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("name", METHODS)
def test_what_is_in_memory_is_what_is_written(name: str, tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    whole = describe(str(run_of(tiny_llama, place, name, **METHODS[name]))).whole
    with torch.no_grad():
        expected = whole.in_memory()(IDS).logits
    facts = whole.write(tmp_path / "model")
    assert facts["merged"] and facts["changed_tensors"] == 14
    with torch.no_grad():
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(tiny_llama)(IDS).logits
    assert (expected - base).abs().max() > 0.1, "the adapter does something"
    apart = whole.from_trained(whole.in_memory())
    assert apart is not None and apart["prompts"]["mean_kl"] < (0.5 if name == "qlora" else 1e-6)


def test_a_model_without_an_adapter_goes_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny_llama.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    whole = describe(str(source)).whole
    assert whole.write(tmp_path / "model") == {"merged": False} and whole.from_trained(None) is None
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", source))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and len(ours) == len(theirs)
    assert not (tmp_path / "model" / "pytorch_model.bin").exists()
    assert 257 in json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"], "the template's own end"
