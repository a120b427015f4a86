import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from tests.models.gguf_files import write_gguf
from tunesmith.errors import UserError
from tunesmith.models import source
from tunesmith.models.source import cache_folder, locate


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        locate(name)
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tiny_llama: Path, tmp_path: Path) -> None:
    located = locate(str(tiny_llama), cache=tmp_path)
    assert (located.folder, located.name, located.kind) == (tiny_llama, "tiny-llama", "folder")
    assert located.origin == str(tiny_llama.resolve())
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_is_converted_once(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    told: list[str] = []
    first = locate(str(tmp_path / "tiny.gguf"), cache=tmp_path / "cache", progress=told.append)
    assert (first.name, first.kind, first.origin) == ("tiny", "gguf", str(tmp_path / "tiny.gguf"))
    assert first.folder.parent == tmp_path / "cache/models" and (first.folder / "model.safetensors").is_file()
    again = locate(str(tmp_path / "tiny.gguf"), cache=tmp_path / "cache", progress=told.append)
    assert again == first and told == ["converting tiny.gguf to safetensors (once)"]
    # another file of the same name is another model
    write_gguf(tmp_path / "tiny.gguf", tiny_llama, tied=True)
    assert locate(str(tmp_path / "tiny.gguf"), cache=tmp_path / "cache").folder != first.folder


def test_a_conversion_that_fails_leaves_nothing(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    monkeypatch.setattr("tunesmith.models.gguf._mend_tokenizer_config", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        locate(str(tmp_path / "tiny.gguf"), cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache/models").iterdir()] == [".lock"]
    monkeypatch.undo()
    # what a killed process left behind is in nobody's way
    (target,) = (tmp_path / "cache/models").glob(".*.lock")
    left = target.with_suffix(".building")
    left.mkdir()
    (left / "half").write_text("", encoding="utf-8")
    assert (locate(str(tmp_path / "tiny.gguf"), cache=tmp_path / "cache").folder / "config.json").is_file()
    assert not left.exists()


def test_two_at_once_build_once(tmp_path: Path) -> None:
    built = []

    def build(aside: Path) -> Path:
        built.append(aside)
        (aside / "model").mkdir()
        (aside / "model/weights").write_text("whole", encoding="utf-8")
        return aside / "model"

    threads = [threading.Thread(target=source.once, args=(tmp_path / "models/m", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and (tmp_path / "models/m/weights").read_text(encoding="utf-8") == "whole"


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS"])
def test_no_room_or_no_right_to_write(tmp_path: Path, number: str) -> None:
    import errno

    def build(aside: Path) -> Path:
        raise OSError(getattr(errno, number), "sorry")

    with pytest.raises(UserError, match="set TUNESMITH_CACHE"):
        source.once(tmp_path / "models/m", build)
    assert not (tmp_path / "models/m").exists()


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TUNESMITH_CACHE")
    assert cache_folder() == Path.home() / ".cache/tunesmith"


def test_names_that_are_nothing(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_llama, tmp_path / "qwen-small")
    assert f"did you mean {tmp_path / 'qwen-small'}?" in refusal(str(tmp_path / "qwen-smal"))
    assert f"there is no folder {tmp_path / 'absent'}" in refusal(str(tmp_path / "absent/model"))
    monkeypatch.chdir(tmp_path)
    assert "did you mean qwen-small?" in refusal("qwen-smal")
    assert "no such folder or file" in refusal("models/a.gguf")
    assert "model.source is empty" in refusal("")
    assert "there is builtin:smollm2-135m-instruct" in refusal("builtin:smollm3")
    assert "ms:owner/name" in refusal("ms:qwen")


def test_single_files(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"PK")
    assert "can run any program" in refusal(str(tmp_path / "model.bin"))
    assert f"pass the folder that holds it: {tiny_llama}" in refusal(str(tiny_llama / "model.safetensors"))
    (tmp_path / "model.gguf").write_bytes(b"")
    assert "neither a folder nor a GGUF file" in refusal(str(tmp_path / "model.gguf"))


def test_problems_of_a_folder_are_told(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(str(folder))


def test_a_hub_id_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal("Qwen/Qwen3-0.6B")
    assert "HF_HUB_OFFLINE is set" in said and "hf download Qwen/Qwen3-0.6B" in said
    assert "HF_ENDPOINT" in said and "--model FOLDER" in said


def test_a_name_in_a_folder_that_is_here_is_looked_for_there_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("Qwen/qwen3-small", "runs/tickets-lora", "runs/b"):
        Path(name).mkdir(parents=True)
    first, second, *cure = refusal("Qwen/qwen3-smal").splitlines()
    assert first == "Qwen/qwen3-smal: there is no folder qwen3-smal in Qwen; did you mean Qwen/qwen3-small?"
    assert second.startswith("as a hub id it is not in the hub's cache") and "hf download Qwen/qwen3-smal" in cure[0]
    assert refusal("Qwen/zzz").startswith("Qwen/zzz: there is no folder zzz in Qwen; it holds qwen3-small\n")
    Path("runs/b/run.yaml").write_text("")
    first, second = refusal("runs/ticket-lora").splitlines()
    assert first == "runs/ticket-lora: there is no folder ticket-lora in runs; did you mean runs/tickets-lora?"
    assert "the hub was not reached" in second and "hf download" not in second

    def snapshot_download(*_: object, **__: object) -> str:
        raise errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert refusal("runs/bb").splitlines()[0] == "runs/bb: there is no folder bb in runs; did you mean runs/b?"


def test_a_hub_id_is_a_snapshot_with_its_commit(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is a stand-in that keeps snapshots as huggingface_hub does: a folder named by the commit."""
    snapshot = Path(shutil.copytree(tiny_llama, tmp_path / "snapshots/0123abcd"))
    asked: dict[str, Any] = {}

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    located = locate("owner/tiny@v1")
    assert (located.folder, located.name, located.kind, located.origin) == (snapshot, "tiny", "hub", "owner/tiny@0123abcd")
    assert (asked["repo"], asked["revision"]) == ("owner/tiny", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py", "*")) for pattern in asked["patterns"] if pattern != "LICENSE*")
    (snapshot / "model.safetensors").unlink()
    assert "no weights" in refusal("owner/tiny")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError, "hf auth login"),
        (errors.RepositoryNotFoundError, "nor a model that you may read"),
        (errors.RevisionNotFoundError, "no revision"),
    ],
)
def test_what_the_hub_answers(monkeypatch: pytest.MonkeyPatch, error: type[Exception], said: str) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert said in refusal("owner/tiny@v1")


def test_modelscope_is_optional(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    import types

    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed
    assert "pip install modelscope" in refusal("ms:owner/tiny")
    stand_in = types.SimpleNamespace(snapshot_download=lambda *_, **__: str(tiny_llama))
    monkeypatch.setitem(sys.modules, "modelscope", stand_in)
    located = locate("ms:owner/tiny")
    assert (located.folder, located.kind, located.origin) == (tiny_llama, "hub", "ms:owner/tiny")


def test_as_a_command(tiny_llama: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for name, code in [(str(tiny_llama), 0), ("", 2)]:
        command = [sys.executable, "-m", "tunesmith.models.source", name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout.strip()) == (code, name)
        assert "Traceback" not in done.stderr
