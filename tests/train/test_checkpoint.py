import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tunesmith.errors import UserError
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import Checkpoint, Clock, Progress


def at(step: int) -> Checkpoint:
    trained = {"a.A": torch.full((2, 3), float(step)), "a.B": torch.arange(4, dtype=torch.bfloat16)}
    optimizer = {"a.A.exp_avg": torch.ones(2, 3), "a.B.codes": torch.arange(4, dtype=torch.uint8), "a.A.step": torch.tensor(float(step))}
    return Checkpoint(trained, optimizer, Progress(step, 10 * step, 11 * step, 5 * step, 1.25, 2), Clock(1.5, 0.5, 1.0, 9))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None and checkpoint.newest(tmp_path) == 0
    path = checkpoint.save(tmp_path, at(3), keep=2)
    assert path == tmp_path / "checkpoints" / "step-3"
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert (found.progress, found.clock) == (at(3).progress, at(3).clock)
    for kept, wanted in ((found.trained, at(3).trained), (found.optimizer, at(3).optimizer)):
        assert kept.keys() == wanted.keys()
        assert all(kept[name].dtype == wanted[name].dtype and torch.equal(kept[name], wanted[name]) for name in wanted)


def test_state_has_no_times(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, at(3), keep=2)
    names = ["best_loss", "best_step", "computed_tokens", "learned_tokens", "step", "tokens"]
    assert sorted(json.loads((path / "state.json").read_text())) == names


def test_the_oldest_go(tmp_path: Path) -> None:
    for step in (2, 8, 9, 10, 11):
        checkpoint.save(tmp_path, at(step), keep=3)
    assert checkpoint.steps(tmp_path) == [9, 10, 11], "by number, not by letter"
    assert checkpoint.newest(tmp_path) == 11


def test_only_whole_folders_count(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, at(3), keep=2)
    for name in (".step-9.77.new", "step-9.old", "step-x", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert checkpoint.steps(tmp_path) == [3]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", b"{"),
        ("state.json", b'{"colour": 1}'),
        ("clock.json", b"\xff\xfe"),
        ("trained.safetensors", b"xx"),
        ("optimizer.safetensors", None),
    ],
)
def test_a_damaged_one_is_named(tmp_path: Path, file: str, content: bytes | None) -> None:
    checkpoint.save(tmp_path, at(3), keep=2)
    path = checkpoint.save(tmp_path, at(4), keep=2) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"step-4 is damaged .* remove this folder and resume: the run goes on from step 3 then"):
        checkpoint.load(tmp_path)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    checkpoint.write_whole(target, lambda aside: (aside / "old").write_text("1"))
    checkpoint.write_whole(target, lambda aside: (aside / "new").write_text("2"))
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing is left aside"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; what was saved before is whole. Free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written .*Read-only file system"),
    ],
)
def test_what_stood_before_survives_a_failure(tmp_path: Path, error: Exception, sentence: str) -> None:
    target = tmp_path / "adapter"
    checkpoint.write_whole(target, lambda aside: (aside / "old").write_text("1"))

    def fill(aside: Path) -> None:
        (aside / "half").write_text("2")
        raise error

    with pytest.raises(UserError, match=sentence):
        checkpoint.write_whole(target, fill)
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=str)
def test_whatever_ends_it_nothing_half_written_stays(tmp_path: Path, error: BaseException) -> None:
    def fill(aside: Path) -> None:
        (aside / "half").write_text("2")
        raise error

    with pytest.raises(type(error)):
        checkpoint.write_whole(tmp_path / "adapter", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "adapter"
    checkpoint.write_whole(target, lambda aside: (aside / "old").write_text("1"))
    rename = os.rename

    def once(source: Path, destination: Path) -> None:
        if source.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(UserError, match="Input/output error"):
        checkpoint.write_whole(target, lambda aside: (aside / "new").write_text("2"))
    assert [path.name for path in target.iterdir()] == ["old"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renamed first and flushed later, a power cut would leave an empty file under a good name."""
    order: list[str] = []
    rename, fsync = os.rename, os.fsync

    def flushed(descriptor: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def renamed(source: Path, destination: Path) -> None:
        order.append("rename")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed)
    checkpoint.write_whole(tmp_path / "adapter", lambda aside: (aside / "file").write_text("1"))
    assert order.index("file") < order.index("rename") < order.index(tmp_path.name)


def test_what_a_kill_left_is_cleaned(tmp_path: Path) -> None:
    inner = tmp_path / "checkpoints"
    for path in (inner / ".step-9.77.new", tmp_path / ".best.77.old", tmp_path / ".adapter.77.old", tmp_path / "adapter"):
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)
    (tmp_path / ".plan.json.new").write_text("{")
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "best", "checkpoints"]
    assert (tmp_path / "best" / "file").read_text() == ".best.77.old", "moved away, and its successor never came: put back"
    assert (tmp_path / "adapter" / "file").read_text() == "adapter"
    assert not list(inner.iterdir())
