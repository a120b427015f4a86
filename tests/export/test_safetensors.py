import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.export.tiny_runs import run_of
from tests.runs import own_cache, quiet  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import safetensors
from tunesmith.export.source import describe
from tunesmith.export.target import Options, Proof
from tunesmith.export.truth import truth_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"method": {"name": "dora", "rank": 4}},
    "qlora": {"method": {"name": "qlora", "rank": 4}},
    "full": {"method": {"name": "full"}, "train.learning_rate": 0.001},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("safetensors")


def exported(given: Path, out: Path, options: Options, spoil: Any = None) -> Proof:
    sources = [describe(str(given))]
    safetensors.check(sources, options)
    truth = truth_of(sources[0], True, quiet)
    safetensors.write(sources, out, options, quiet)
    if spoil is not None:
        spoil(out)
    return safetensors.prove(sources, [truth], out, options, quiet)


@pytest.mark.parametrize("name", METHODS)
def test_transformers_computes_what_we_do(name: str, tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    proof = exported(run_of(tiny_llama, place, name, **METHODS[name]), tmp_path / "out", Options())
    assert proof.failures == () and proof.figures["positions"] > 100
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["dtype"] == config["torch_dtype"]


def test_four_bits_are_those_of_the_merged_weights(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    proof = exported(run_of(tiny_llama, place, "lora"), tmp_path / "out", Options(quantize="nf4"))
    assert proof.failures == () and 1e-4 < proof.figures["from_unquantised"]["mean_kl"] < 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").is_quantized


def less(out: Path) -> None:
    tensors = load_file(out / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def endless(out: Path) -> None:
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))


def retold(out: Path) -> None:
    path = out / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant\n", "<|im_start|>assistant:"))


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (less, "missing keys: model.layers.1.mlp.up_proj.weight"),
        (endless, r"does not name \[257\] among the tokens that end an answer"),
        (retold, "its chat template feeds other tokens than training did"),
    ],
)
def test_what_a_server_would_trip_over_is_found(spoil: Any, failure: str, tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    import re

    proof = exported(run_of(tiny_llama, place, "lora"), tmp_path / "out", Options(), spoil)
    assert any(re.search(failure, each) for each in proof.failures), proof.failures


def test_what_changes_no_matrix_is_refused_with_what_can_be_done(tiny_llama: Path, place: Path) -> None:
    run = run_of(tiny_llama, place, "prompt", method={"name": "prompt", "tokens": 3})
    with pytest.raises(UserError, match=r"tunesmith serve .*--as lora"):
        safetensors.check([describe(str(run))], Options())


def test_a_bfloat16_checkpoint_is_compared_as_it_is_rounded(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_llama.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(tiny_llama / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    run = run_of(base, tmp_path, "lora")
    sources = [describe(str(run))]
    truth = truth_of(sources[0], True, quiet)
    assert truth.from_trained is not None and 1e-9 < truth.from_trained["prompts"]["mean_kl"] < 1e-2, "the merge is rounded to bf16"
    safetensors.write(sources, tmp_path / "out", Options(), quiet)
    assert safetensors.prove(sources, [truth], tmp_path / "out", Options(), quiet).failures == (), "and that is no difference"
