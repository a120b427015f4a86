import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import cli, config
from tunesmith.errors import UserError
from tunesmith.verbs import resume

ROOT = Path(__file__).resolve().parent.parent.parent
LONG = {"train.steps": 80, "train.checkpoint_every": 50, "method": {"name": "lora", "rank": 4, "dropout": 0.1}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "events.jsonl").exists() and (out / "events.jsonl").read_text().count('"event": "step"') >= step:
            return
        time.sleep(0.005)
    pytest.fail(f"no step {step}: {process.poll()} {process.communicate()}")


def test_signals_stop_with_a_checkpoint_and_resume_goes_on(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Ctrl-C in training, SIGTERM in the resumed run, then to the end: what is left is the undisturbed run."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    file = tmp_path / "run.yaml"
    file.write_text(config.dump(runs.settings(tiny_llama, data, out, LONG)))
    for words, number, code in ((["train", str(file)], signal.SIGINT, 130), (["resume", str(out)], signal.SIGTERM, 143)):
        before = len(runs.steps_of(out)) if out.exists() else 0
        process = started(*words)
        wait_for_step(out, before + 3, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=100)
        assert process.returncode == code, stderr
        steps = len(runs.steps_of(out))
        assert before + 3 <= steps < 80 and (out / "checkpoints" / f"step-{steps}").is_dir()
        assert f"tunesmith: stopped after step {steps}; go on with `tunesmith resume {out}`" in stderr and stdout == ""
        assert "stopping after this step, a checkpoint will be saved" in stderr
    assert cli.main(["resume", str(out)]) == 0
    runs.finish(runs.settings(tiny_llama, data, whole, LONG))
    assert runs.steps_of(out) == runs.steps_of(whole)
    assert runs.contents(out) == runs.contents(whole)


def test_a_finished_run_and_more_steps(tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    runs.finish(runs.settings(tiny_llama, data, out, {"train.steps": 2}))
    shutil.copytree(out, tmp_path / "copy")
    assert cli.main(["resume", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"tunesmith: {out} is finished after 2 steps; for more: tunesmith resume {out} train.steps=4"
    )
    assert runs.contents(out) == runs.contents(tmp_path / "copy")
    assert cli.main(["resume", str(out), "train.steps=4"]) == 0
    printed = capsys.readouterr()
    assert re.match(rf"{re.escape(str(out))}: 4 steps, loss ", printed.out)
    assert "going on after step 2" in printed.err and f"next: tunesmith chat {out} --compare" in printed.err


def test_no_run_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert "no run here (run.yaml is missing)" in capsys.readouterr().err


def test_only_steps_can_change() -> None:
    assert resume._steps([]) is None and resume._steps(["train.steps=7"]) == 7
    with pytest.raises(UserError, match=r"train.learning_rate=1: a resumed run keeps its settings; only train.steps=N can change"):
        resume._steps(["train.learning_rate=1"])
    for wrong in ("train.steps=many", "train.steps=0", "train.steps", "train.steps=true", "train.steps=1.5"):
        with pytest.raises(UserError, match="train.steps is a whole number of at least 1"):  # noqa: RUF043
            resume._steps([wrong])


def test_its_arguments() -> None:
    parser = argparse.ArgumentParser()
    resume.add_arguments(parser)
    parsed = parser.parse_args(["DIR", "train.steps=3"])
    assert (parsed.run, parsed.words) == ("DIR", ["train.steps=3"])
