import json
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
QUICK = ["train.steps=2", "train.tokens_per_step=200", "model.dtype=float32", "train.threads=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def train(model: Path, data: Path, out: Path, *words: str) -> int:
    return cli.main(["train", "--model", str(model), "--data", str(data), "--out", str(out), *QUICK, *words])


def test_a_run_ends_with_an_export_and_a_resumed_one_with_a_new_one(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(tiny_llama, data, out, "--then", "export:safetensors:nf4") == 0
    first = json.loads((out / "export-safetensors" / "export.json").read_text())
    assert first["options"] == {"quantize": "nf4"} and first["proof"]["failures"] == []
    before = (out / "export-safetensors" / "model.safetensors").read_bytes()
    assert cli.main(["resume", str(out), "train.steps=3", "--then", "export:safetensors:nf4"]) == 0
    assert (out / "export-safetensors" / "model.safetensors").read_bytes() != before
    assert json.loads((out / "export.json").read_text())["safetensors"]["proof"]["failures"] == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--method", "prompt", "--then", "export:gguf"], "--then export:gguf: "),
        (["--method", "full", "--then", "export:peft"], "--to safetensors"),
        (["--then", "export:peft:q8_0"], "--quantize q8_0: not a way of --to peft"),
        (["--method", "prefix", "--then", "merge"], "--then merge: "),
        (["--method", "full", "--then", "merge"], "already gives a whole model"),
    ],
    ids=str,
)
def test_what_cannot_become_of_it_is_refused_before_the_run(
    words: list[str], reason: str, tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    assert train(tiny_llama, data, tmp_path / "run", *words) == 2
    assert reason in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_proof_that_nobody_here_can_make_is_told_before_the_run(
    tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TUNESMITH_VLLM_PYTHON", str(tmp_path / "nowhere"))
    assert train(tiny_llama, data, tmp_path / "run", "--then", "export:vllm") == 2
    assert "--then export:vllm: " in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("word", ["export", "export:", "export:foo", "serve", ""])
def test_other_words(word: str, tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(tiny_llama, data, tmp_path / "run", "--then", word) == 2
    assert "neither merge nor export: and one of peft" in capsys.readouterr().err


def test_a_run_says_what_its_server_will_need(tiny_llama: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    assert train(tiny_llama, data, tmp_path / "run", "--method", "dora", "serve_with=vllm") == 0
    assert "! serve_with=vllm: vLLM takes it merged into the base (vLLM does not know DoRA)" in capsys.readouterr().err
