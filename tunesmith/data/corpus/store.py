"""Flat arrays that grow while tokens are made: in memory, or in files of the cache from which they are mapped.

cache/tokens/KEY/  report.json and one NAME.TYPE file for each array; complete or absent.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIMIT = 20 << 30  # bytes that all kept tokens may take on the disk
YOUNG = 24 * 3600  # seconds since its last use in which an entry is never removed
REPORT = "report.json"


@cache
def code() -> str:
    """SHA-256 of the program that reads, understands and renders rows: what another one kept may not be what this one would make."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Writer:
    """Arrays by name. `add` appends; `finish` gives them whole, kept under `cache / key` where a cache is given."""

    def __init__(self, cache: Path | None, key: str, types: dict[str, type]):
        self._types, self._cache, self._key = types, cache, key
        self._parts: dict[str, list[Array]] = {name: [] for name in types}
        self._counts = dict.fromkeys(types, 0)  # elements in each file
        self._folder: Path | None = None
        self._files: dict[str, FileIO] = {}
        if cache is not None:
            try:
                cache.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(prefix=".new.", dir=cache))
                for name, kind in types.items():  # without a buffer, whose content would be lost where the disk is full
                    self._files[name] = FileIO(_path(self._folder, name, kind), "w")
            except OSError:  # a cache that cannot be written is no reason to stop
                self._to_memory()

    def add(self, **arrays: Array) -> None:
        """Append to some of the arrays. Where the disk is full what is written goes on in memory."""
        for name, array in arrays.items():
            array = np.ascontiguousarray(array, self._types[name])
            if self._files:
                try:
                    _write(self._files[name], array.view(np.uint8).data)
                    self._counts[name] += len(array)
                    continue
                except OSError:
                    self._to_memory()
            self._parts[name].append(array)

    def arrays(self) -> dict[str, Array]:
        """All arrays, mapped from their files where there are any. Nothing can be added any more."""
        if self._folder is None:
            return {name: np.concatenate([np.zeros(0, kind), *self._parts[name]]) for name, kind in self._types.items()}
        for file in self._files.values():
            file.close()
        return {name: _mapped(_path(self._folder, name, kind), kind) for name, kind in self._types.items()}

    def keep(self, report: dict[str, Any]) -> None:
        """Put the files, with `report` beside them, where `load` finds them; the mapped arrays stay as they are.

        Where that cannot be, because the disk is full or another process has just kept the same, nothing is kept.
        """
        if self._folder is not None and self._cache is not None:
            try:
                kept = {"hash": _hash(self.arrays()), "report": report}
                (self._folder / REPORT).write_text(json.dumps(kept), encoding="ascii")
                target = self._cache / self._key
                shutil.rmtree(target, ignore_errors=True)
                os.replace(self._folder, target)
            except OSError:
                shutil.rmtree(self._folder, ignore_errors=True)  # what is mapped stays readable

    def drop(self) -> None:
        """What was written is not wanted."""
        for file in self._files.values():
            file.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _to_memory(self) -> None:
        folder, files = self._folder, self._files
        self._folder, self._files = None, {}
        for name, file in files.items():
            with contextlib.suppress(OSError):
                file.close()
            if self._counts[name]:  # of an array that was written in part, only what was whole before
                self._parts[name].insert(0, np.fromfile(file.name, self._types[name], self._counts[name]))
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def load(cache: Path, key: str, types: dict[str, type]) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """What was kept, or None where it is absent or not as it was written."""
    folder = cache / key
    try:
        kept = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        arrays = {name: _mapped(_path(folder, name, kind), kind) for name, kind in types.items()}
        if kept["hash"] != _hash(arrays):
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read serves as well
            os.utime(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return arrays, kept["report"]


def trim(cache: Path, limit: int = LIMIT) -> None:
    """Remove the entries that were not used for longest until the others take no more than `limit` bytes."""
    with contextlib.suppress(OSError):
        entries = sorted((path for path in cache.iterdir()), key=lambda path: path.stat().st_mtime, reverse=True)
        taken, now = 0, time.time()
        for path in entries:
            taken += size(path)
            old = now - path.stat().st_mtime > YOUNG
            if old and (taken > limit or path.name.startswith(".")):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def _write(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


def _hash(arrays: dict[str, Array]) -> str:
    """Not against forgery, only against half-written and damaged files: fast where SHA-256 of gigabytes would take seconds."""
    return " ".join(f"{name}:{len(array)}:{zlib.crc32(array.data):08x}" for name, array in sorted(arrays.items()))


def _path(folder: Path | None, name: str, kind: type) -> Path:
    assert folder is not None
    return folder / f"{name}.{np.dtype(kind).name}"


def _mapped(path: Path, kind: type) -> Array:
    """An array whose memory is the file's pages, which the system may drop and read again."""
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.asarray(np.memmap(path, kind, "r"))
