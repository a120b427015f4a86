import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.export.tiny_runs import run_of
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli
from tunesmith.export import fitted
from tunesmith.verbs import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def test_one_line_with_figures_and_what_should_be_known(tiny_llama: Path, place: Path, tmp_path: Path, capsys: Any) -> None:
    run, out = run_of(tiny_llama, place, "lora"), tmp_path / "a" / "out"
    assert cli.main(["export", str(run), "--to", "peft", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: peft, 0.") and "opened it and agrees: largest logit difference" in said.out and "KL " in said.out
    assert "! its base is named by a path of this machine" in said.err and "… lora: its own answers" in said.err
    assert json.loads((run / "export.json").read_text())["peft"]["proof"]["failures"] == []


def test_an_adapter_folder_takes_its_base_from_the_command(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    adapter = run_of(tiny_llama, place, "lora") / "adapter"
    words = ["export", str(adapter), "--to", "safetensors", "--out", str(tmp_path / "out"), "--model", str(tiny_llama)]
    assert cli.main(words) == 0 and (tmp_path / "out" / "model.safetensors").is_file()
    assert not (adapter / "export.json").exists(), "it is no run"


def test_what_stands_there_is_not_overwritten(tiny_llama: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["export", str(tiny_llama), "--to", "safetensors", "--out", str(tmp_path)]) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_lora_fitted_to_what_the_target_cannot_take(tiny_llama: Path, place: Path, tmp_path: Path, capsys: Any) -> None:
    run = run_of(tiny_llama, place, "dora", method={"name": "dora", "rank": 2})
    out = tmp_path / "out"
    assert cli.main(["export", str(run), "--to", "tgi", "--keep-base", "--out", str(out), "--as", "lora:8"]) == 0
    facts = json.loads((out / "export.json").read_text())
    assert facts["fitted"]["dora"]["rank"] == 8 and facts["proof"]["failures"] == []
    assert (out / "adapters" / "dora" / "adapter_config.json").is_file(), "under the run's own name"
    assert "a LoRA of rank 8 fitted to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to", "peft", "--quantize", "nf4"], "--quantize nf4: not a way of --to peft"),
        (["--to", "gguf", "--adapter-only", "--quantize", "q8_0"], "leave --quantize out"),
        (["--to", "peft", "--as", "lora:99999"], "has more than"),
    ],
    ids=str,
)
def test_what_a_fitted_lora_could_not_become_is_refused_before_it_is_fitted(
    words: list[str], reason: str, tiny_llama: Path, place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fitted, "fit_lora", lambda *given, **more: pytest.fail("it was fitted"))
    run = run_of(tiny_llama, place, "prefix", method={"name": "prefix", "tokens": 3})
    assert cli.main(["export", str(run), "--out", str(tmp_path / "a" / "out"), "--as", "lora", *words]) == 2
    assert reason in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_was_begun_goes_when_somebody_ends_it(tiny_llama: Path, place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def ended(source: str, rank: int | None, folder: Path, **more: Any) -> None:
        assert folder.parent.is_dir()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(fitted, "fit_lora", ended)
    before = signal.getsignal(signal.SIGTERM)
    run = run_of(tiny_llama, place, "prefix", method={"name": "prefix", "tokens": 3})
    assert cli.main(["export", str(run), "--to", "peft", "--out", str(tmp_path / "out"), "--as", "lora"]) == 143
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("convert", ["dora", "lora:", "lora:x", "lora:0"])
def test_other_words_for_as(convert: str, tiny_llama: Path, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["export", str(tiny_llama), "--to", "peft", "--out", str(tmp_path / "out"), "--as", convert]) == 2
    assert "write --as lora, or --as lora:16" in capsys.readouterr().err


def test_every_target_is_told_by_help(capsys: Any) -> None:
    assert cli.main(["export", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: " in told for name in export.TARGETS) and "--no-verify" in told
