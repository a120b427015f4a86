"""Law: every target writes a run's LoRA, has it opened by the program that will serve it, and finds a tensor that is a tenth off."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli
from tunesmith.errors import ProofFailed
from tunesmith.export.export import check, export
from tunesmith.export.source import describe
from tunesmith.export.target import Options
from tunesmith.export.targets import TARGETS
from tunesmith.train.checkpoint import write_whole
from tunesmith.verbs import export as verb

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
SLOW = {"vllm"}  # proved by `make verify-vllm`, in an environment of its own
PROVED = [name for name in TARGETS if name not in SLOW]
BROKEN = "down_proj"


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes every answer, over fp32 weights."""
    place = tmp_path_factory.mktemp("exports")
    data = runs.write_rows(place / "rows.jsonl")
    runs.finish(runs.settings(tiny_llama, data, place / "run", {"train.learning_rate": 0.02}))
    return place / "run"


def test_the_verb_names_what_is_on_the_shelf() -> None:
    assert set(verb.TARGETS) >= set(TARGETS)


@pytest.mark.parametrize("target", PROVED)
def test_it_is_written_and_proved(target: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "--to", target, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{out}: {target}, ") and "agrees" in printed and printed.count("\n") == 1
    facts = json.loads((out / "export.json").read_text())
    assert facts["proof"]["failures"] == [] and facts["proof"]["figures"]
    assert facts["target"] == target and facts["sources"][0]["name"] == "run"
    assert json.loads((run / "export.json").read_text())[target] == facts
    assert not [path.name for path in tmp_path.iterdir() if path != out], "nothing is left beside it"


@pytest.mark.parametrize("target", PROVED)
def test_a_tensor_that_is_a_tenth_off_is_found(target: str, run: Path, tmp_path: Path) -> None:
    def fill(out: Path, write: Callable[[Path], Any]) -> None:
        write_whole(out, write)
        break_one(out)

    sources = [describe(str(run))]
    check(target, sources, Options())
    with pytest.raises(ProofFailed) as failed:
        export(target, sources, tmp_path / "out", Options(), verify=True, fill=fill, tell=runs.quiet)
    assert failed.value.exit_code == 3
    kept = json.loads((tmp_path / "out" / "export.json").read_text())["proof"]["failures"]
    assert kept and all(failure in str(failed.value) for failure in kept)


@pytest.mark.parametrize("target", PROVED)
def test_a_proof_can_be_left_out_and_is_then_missed(target: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--to", target, "--out", str(tmp_path / "out"), "--no-verify"]) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["proof"] == "left out: --no-verify"
    assert "not proved" in capsys.readouterr().err


def break_one(folder: Path) -> None:
    """One matrix of what was written, ten per cent larger."""
    [file] = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".gguf")][:1]
    if file.suffix == ".gguf":
        reader = GGUFReader(file, "r+")
        tensor: Any
        [tensor] = [tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight"]
        tensor.data[:] = tensor.data * 1.1
        tensor.data.flush()
        return
    tensors = load_file(file)
    name = next(name for name in tensors if BROKEN in name and "lora_A" not in name)
    tensors[name] = tensors[name] * 1.1
    save_file(tensors, file, metadata={"format": "pt"})
