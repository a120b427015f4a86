import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunesmith import __version__, cli
from tunesmith.errors import Interrupted, ProofFailed, UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`tunesmith doctor` does what `verb.run` is set to."""
    module = SimpleNamespace(add_arguments=lambda parser: None, run=lambda arguments: 0)
    monkeypatch.setattr(cli, "_module", lambda name: module)
    return module


def raising(error: BaseException) -> Any:
    def run(arguments: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: tunesmith {name} ") and cli.VERBS[name].split(":")[0] in " ".join(said.split())


def test_help_comes_without_torch_and_at_once() -> None:
    program = (
        "import sys\nfrom tunesmith import cli\n"
        "codes = [cli.main([verb, '--help']) for verb in cli.VERBS] + [cli.main([])]\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if any(codes) or heavy else 0)"
    )
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.perf_counter() - begun < 3, "all verbs together; one alone takes half a second"


def test_the_overview_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +{re.escape(sentence)}$", said, re.MULTILINE) for name, sentence in cli.VERBS.items())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tunesmith {__version__}\n"


def test_a_verb_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("tunesmith: no verb 'trian'; did you mean 'train'?; there are quickstart, train")
    assert cli.main(["--trian"]) == 2
    assert cli.main(["train", "--modle", "x"]) == 2
    assert "unrecognized arguments: --modle" in capsys.readouterr().err


def test_settings_may_stand_between_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("train: {epochs: 5}\n")
    words = ["train", "method.rank=2", "--model", "M", str(tmp_path / "run.yaml"), "--out", "O", "train.steps=3", "--print-config"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for line in ("  source: M  # --model", "  rank: 2  # method.rank=2", "  steps: 3  # train.steps=3", "out: O  # --out"):
        assert line in said.splitlines()
    assert f"  epochs: 5.0  # {tmp_path / 'run.yaml'}:1" in said.splitlines()


def test_verbs_of_a_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert cli.main(["data", "check", str(tmp_path / "rows.jsonl"), "--json"]) == 0
    assert '"good": 1' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("rows.jsonl:3: no answer", "mend it"), 2, "tunesmith: rows.jsonl:3: no answer\n  mend it\n"),
        (ProofFailed("merged is not the adapter"), 3, "tunesmith: merged is not the adapter\n"),
        (Interrupted(130, "stopped after step 3"), 130, "tunesmith: stopped after step 3\n"),
        (Interrupted(143, "stopped after step 3"), 143, "tunesmith: stopped after step 3\n"),
        (KeyboardInterrupt(), 130, "tunesmith: stopped\n"),
        (
            OSError(errno.ENOSPC, "No space left", "events.jsonl"),
            2,
            "tunesmith: events.jsonl: the disk is full; what was saved before is whole\n",
        ),
    ],
)
def test_what_errors_become(error: BaseException, code: int, said: str, verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb.run = raising(error)
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr() == ("", said)


def test_our_fault_is_a_report_and_no_traceback(verb: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    verb.run = raising(ZeroDivisionError("division by zero"))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    (report,) = tmp_path.iterdir()
    assert said == f"tunesmith: this is our fault: ZeroDivisionError: division by zero\n  the report is in {report}\n"
    text = report.read_text()
    assert "Traceback" in text and "ZeroDivisionError: division by zero" in text and f"tunesmith {__version__}, Python 3" in text
    assert "hf_secret" not in text


def test_our_fault_where_no_report_can_be_written(verb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli.tempfile, "mkstemp", full)
    verb.run = raising(ZeroDivisionError("division by zero"))
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "a report file could not be written (No space left on device)" in said and "Traceback" in said


def test_a_verb_that_cannot_be_imported_is_our_fault(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tunesmith.verbs.doctor", None)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("tunesmith: this is our fault: ModuleNotFoundError")


def test_a_reader_that_has_gone_is_no_fault() -> None:
    """`tunesmith train --print-config | head -1`"""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "tunesmith", "train", "--print-config"]
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
