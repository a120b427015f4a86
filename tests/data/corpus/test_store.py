import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.corpus import store
from tunesmith.data.corpus.store import Writer

TYPES: dict[str, type] = {"ids_N": np.uint32, "learned_N": np.bool_, "end_D": np.int64}


def filled(cache: Path | None, key: str = "key", parts: int = 3) -> tuple[Writer, dict[str, np.ndarray]]:
    """A writer to which several parts were added, and what it must hold."""
    chance = np.random.Generator(np.random.PCG64(0))
    writer = Writer(cache, key, TYPES)
    whole: dict[str, list[Any]] = {name: [np.zeros(0, kind)] for name, kind in TYPES.items()}
    for part in range(parts):
        arrays: dict[str, Any] = {name: chance.integers(0, 2, 1000 * part).astype(kind) for name, kind in TYPES.items()}
        writer.add(**arrays)
        for name, array in arrays.items():
            whole[name].append(array)
    return writer, {name: np.concatenate(each) for name, each in whole.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in expected.items())


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_added_comes_back_whole(tmp_path, cached):
    writer, expected = filled(tmp_path / "cache" if cached else None)
    arrays = writer.arrays()
    assert same(arrays, expected) and set(arrays) == set(TYPES)
    assert isinstance(arrays["ids_N"].base, np.memmap) == cached  # mapped, not held


def test_what_is_kept_is_found_with_its_report(tmp_path):
    writer, expected = filled(tmp_path)
    arrays = writer.arrays()
    assert store.load(tmp_path, "key", TYPES) is None
    report = {"odd": "\ud800 ü 中", "list": [1, None]}
    writer.keep(report)
    assert same(arrays, expected)  # what was mapped stays
    found = store.load(tmp_path, "key", TYPES)
    assert found is not None and same(found[0], expected) and found[1] == report
    assert [path.name for path in tmp_path.iterdir()] == ["key"] and store.load(tmp_path, "other", TYPES) is None


def test_nothing_at_all_is_kept_as_well(tmp_path):
    writer, expected = filled(tmp_path, parts=0)
    writer.arrays()
    writer.keep({})
    found = store.load(tmp_path, "key", TYPES)
    assert found is not None and same(found[0], expected)


def test_the_same_kept_twice_is_the_last(tmp_path):
    """As two processes do that prepare the same data at once; what the first has mapped stays readable."""
    first, expected = filled(tmp_path)
    second, _ = filled(tmp_path)
    held = first.arrays()
    second.arrays()
    first.keep({"by": "first"})
    second.keep({"by": "second"})
    found = store.load(tmp_path, "key", TYPES)
    assert found is not None and found[1] == {"by": "second"} and same(found[0], expected) and same(held, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_who_comes_too_late_leaves_nothing_behind(tmp_path, monkeypatch):
    """Another process put the same into place between our removing the old and our renaming."""
    writer, expected = filled(tmp_path)
    held = writer.arrays()
    shutil.copytree(next(tmp_path.iterdir()), tmp_path / "key")
    monkeypatch.setattr(
        store.shutil, "rmtree", lambda path, really=shutil.rmtree, **how: None if path.name == "key" else really(path, **how)
    )
    writer.keep({})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert os.name != "posix" or same(held, expected)


def test_what_is_dropped_is_gone(tmp_path):
    writer, _ = filled(tmp_path)
    writer.drop()
    assert not list(tmp_path.iterdir())


def test_what_was_begun_and_never_kept_does_not_count(tmp_path):
    filled(tmp_path)[0].arrays()
    assert store.load(tmp_path, "key", TYPES) is None and [path.name[:5] for path in tmp_path.iterdir()] == [".new."]


@pytest.mark.parametrize("full_after", [0, 1, 4, 4001, 5000, 9999, 17_000, 25_000])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, full_after):
    """The disk takes so many bytes and no more, in the middle of an array or not."""

    class Full(store.FileIO):
        room = full_after

        def write(self, content):
            if not Full.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = super().write(bytes(content[: Full.room]))  # as a disk does: in part, then not at all
            Full.room -= taken
            return taken

    monkeypatch.setattr(store, "FileIO", Full)
    writer, expected = filled(tmp_path, parts=4)
    assert not list(tmp_path.iterdir())
    arrays = writer.arrays()
    assert same(arrays, expected)
    writer.keep({})
    assert store.load(tmp_path, "key", TYPES) is None and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch):
    writer, expected = filled(tmp_path)
    arrays = writer.arrays()

    def full(*arguments, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    writer.keep({})
    assert not list(tmp_path.iterdir()) and (os.name != "posix" or same(arrays, expected))


@pytest.mark.parametrize("where", ["mkdir", "mkdtemp", "open"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, where):
    def refused(*arguments, **how):
        raise OSError(errno.EROFS, "Read-only file system")

    if where == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refused)
    elif where == "mkdtemp":
        monkeypatch.setattr(store.tempfile, "mkdtemp", refused)
    else:
        monkeypatch.setattr(store, "FileIO", refused)
    writer, expected = filled(tmp_path)
    assert same(writer.arrays(), expected)
    writer.keep({})
    assert not list(tmp_path.iterdir())


def test_a_cache_that_may_only_be_read_serves(tmp_path, monkeypatch):
    writer, expected = filled(tmp_path)
    writer.arrays()
    writer.keep({})

    def refused(*arguments, **how):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    found = store.load(tmp_path, "key", TYPES)
    assert found is not None and same(found[0], expected)


@pytest.mark.parametrize("damage", ["[]", "{}", "", "{", '{"hash": 1, "report": {}}', '{"hash": null}', "null"])
def test_a_damaged_report_is_as_good_as_none(tmp_path, damage):
    writer, _ = filled(tmp_path)
    writer.arrays()
    writer.keep({})
    (tmp_path / "key" / store.REPORT).write_text(damage)
    assert store.load(tmp_path, "key", TYPES) is None


@pytest.mark.parametrize("name", TYPES)
def test_damaged_arrays_are_as_good_as_none(tmp_path, name):
    writer, _ = filled(tmp_path)
    writer.arrays()
    writer.keep({})
    path = tmp_path / "key" / f"{name}.{np.dtype(TYPES[name]).name}"
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], whole + whole[:8], bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(damaged)
        assert store.load(tmp_path, "key", TYPES) is None
    path.write_bytes(whole)
    assert store.load(tmp_path, "key", TYPES) is not None
    path.unlink()
    assert store.load(tmp_path, "key", TYPES) is None


# --- room ---


def entry(cache: Path, name: str, size: int, days: float) -> Path:
    """Something of that size in the cache, last used so many days ago."""
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "content").write_bytes(b"x" * size)
    used = time.time() - days * 24 * 3600
    os.utime(folder, (used, used))
    return folder


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_the_oldest_make_room(tmp_path):
    for days in range(6):
        entry(tmp_path, f"used-{days}", 100, days + 0.5)
    store.trim(tmp_path, limit=350)
    assert names(tmp_path) == {"used-0", "used-1", "used-2"}
    store.trim(tmp_path, limit=0)
    assert names(tmp_path) == {"used-0"}  # of today: perhaps in use


def test_what_was_begun_long_ago_goes_even_where_there_is_room(tmp_path):
    entry(tmp_path, ".new.abc", 10, 2)
    entry(tmp_path, ".new.now", 10, 0)
    entry(tmp_path, "kept", 10, 2)
    (tmp_path / "a file").write_text("x")
    store.trim(tmp_path, limit=1000)
    assert names(tmp_path) == {".new.now", "kept", "a file"}


def test_being_used_makes_an_entry_young(tmp_path):
    writer, _ = filled(tmp_path)
    writer.arrays()
    writer.keep({})
    os.utime(tmp_path / "key", (1, 1))
    assert store.load(tmp_path, "key", TYPES) is not None
    store.trim(tmp_path, limit=0)
    assert names(tmp_path) == {"key"}


def test_trimming_what_is_not_there_does_nothing(tmp_path):
    store.trim(tmp_path / "nothing")
    assert store.size(tmp_path) == 0
