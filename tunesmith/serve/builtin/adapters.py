"""The adapters that a server answers by: where they lie on disk, which of them are in memory, who needs them.

    load(name, folder) ──► read, checked, prepared (caller's thread) ──► placed between two rows (`Mixed`'s lock)
    hold(name) ─► key ──► answers by that key ... ──► release(key)

An adapter that nobody holds may leave memory, the one used longest ago first, once all together take more than the budget; at its next
`hold` its folder is read again. Whoever holds one keeps it, also when another takes its name or the name is forgotten: a key stands for
what was there when it was asked for.

What takes time is done in the thread that calls. No lock is held meanwhile, so that others hold and release what is in memory.
"""

import hashlib
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import check_base
from tunesmith.models.load import Base
from tunesmith.models.source import Located
from tunesmith.serve.builtin.mixed import Mixed, Prepared

_READ = (".json", ".safetensors")  # files of an adapter folder that say what it computes


@dataclass(eq=False)
class _Entry:
    """One adapter as it was when it was loaded."""

    name: str
    key: str  # under which `Mixed` knows it: no two adapters of a process have one
    folder: Path
    digest: str
    bytes: int
    in_front: int  # positions that stand in front of each document
    in_memory: bool = True
    holders: int = 0
    used: int = 0  # rises with every use
    forgotten: bool = False  # nobody can ask for it any more
    moving: threading.Lock = field(default_factory=threading.Lock)  # into memory or out of it


class Adapters:
    """Safe to use from any thread."""

    def __init__(
        self,
        base: Base,
        located: Located,
        mixed: Mixed,
        budget_bytes: int | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ):
        """`budget_bytes`: what adapters may take together while nobody holds them, None for all they like; `tell` is given what a user
        should know of an adapter."""
        self._base, self._located, self._mixed, self._budget, self._tell = base, located, mixed, budget_bytes, tell
        self._names: dict[str, _Entry] = {}
        self._keys: dict[str, _Entry] = {}  # the forgotten ones that are held too
        self._lock = threading.Lock()  # of the two tables and of what is counted in their entries; held for moments
        self._numbers, self._clock = itertools.count(1), itertools.count(1)

    def load(self, name: str, folder: Path | str) -> None:
        """Let an adapter folder (or a run's) answer under a name from now on; answers that hold one of the same name end with it.

        Raises UserError for a folder that cannot be read, was made for another base, or is more than the whole budget.
        """
        path = _adapter_folder(Path(folder).expanduser())
        digest = _digest(path)
        prepared = self._read(name, path)
        if self._budget is not None and prepared.bytes > self._budget:
            raise UserError(
                f"{name}: takes {prepared.bytes / 1e6:.0f} MB, and adapters may take {self._budget / 1e6:.0f} MB together; "
                "raise that limit, or train a smaller one"
            )
        in_front = prepared.first_position + prepared.virtual_tokens
        entry = _Entry(name, f"{name}#{next(self._numbers)}", path, digest, prepared.bytes, in_front)
        self._mixed.place(entry.key, prepared)
        with self._lock:
            old = self._names.get(name)
            self._names[name] = self._keys[entry.key] = entry
            entry.used = next(self._clock)
        if old is not None:
            self._forget(old)
        for sentence in prepared.notes:
            self._tell(sentence)
        self._make_room()

    def unload(self, name: str) -> None:
        """Forget a name; answers that hold it end with it. Raises LookupError."""
        with self._lock:
            if (entry := self._names.pop(name, None)) is None:
                raise LookupError(name)
        self._forget(entry)

    def hold(self, name: str) -> str:
        """The key of what answers to a name now, in memory until `release(key)`; reads its folder again where it had left.

        Raises LookupError for an unknown name, and ValueError where the folder is gone or holds something else by now.
        """
        with self._lock:
            if (entry := self._names.get(name)) is None:
                raise LookupError(name)
            entry.holders += 1
            entry.used = next(self._clock)
            if entry.in_memory:
                return entry.key
        try:
            self._bring(entry)
        except BaseException:
            self.release(entry.key)
            raise
        self._make_room()
        return entry.key

    def release(self, key: str) -> None:
        """Once for each `hold`."""
        with self._lock:
            entry = self._keys[key]
            entry.holders -= 1
            assert entry.holders >= 0, f"{key} was given back more often than it was held"
            over = entry.forgotten and not entry.holders
            full = self._budget is not None and self._taken() > self._budget
        if over:
            self._drop(entry)
        elif full:
            self._make_room()

    def in_front(self, name: str) -> int:
        """Positions that stand in front of each document: a prefix's, or virtual tokens. Raises LookupError, as `bytes` does."""
        return self._entry(name).in_front

    def bytes(self, name: str) -> int:
        """What its tensors take while they are in memory."""
        return self._entry(name).bytes

    def names(self) -> list[str]:
        with self._lock:
            return list(self._names)

    def figures(self) -> dict[str, float]:
        """Gauges by name, for a metrics page."""
        with self._lock:
            found: dict[str, float] = {
                "adapters": len(self._names),
                "adapters_in_memory": sum(entry.in_memory for entry in self._keys.values()),
                "adapters_held": sum(entry.holders > 0 for entry in self._keys.values()),
                "adapter_bytes": self._taken(),
            }
            if self._budget is not None:
                found["adapter_bytes_limit"] = self._budget
        return found | {"adapter_stack_bytes": self._mixed.stack_bytes}

    def _entry(self, name: str) -> _Entry:
        with self._lock:
            if (entry := self._names.get(name)) is None:
                raise LookupError(name)
            return entry

    def _taken(self) -> int:
        return sum(entry.bytes for entry in self._keys.values() if entry.in_memory)

    def _read(self, name: str, folder: Path) -> Prepared:
        file = layout.read(folder)
        check_base(file, self._located.folder)
        tuning = layout.fit(file, self._base.model, self._base.model.device)
        tuning.train(False)
        return self._mixed.prepare(name, tuning)

    def _bring(self, entry: _Entry) -> None:
        """From disk, as it was when it was loaded. Raises ValueError."""
        with entry.moving:
            if entry.in_memory:
                return
            try:
                same = _digest(entry.folder) == entry.digest
                prepared = self._read(entry.name, entry.folder) if same else None
            except (UserError, OSError) as error:
                raise ValueError(f"{entry.name} had left memory, and its folder cannot be read again: {error}") from None
            if prepared is None:
                raise ValueError(f"{entry.name} had left memory, and {entry.folder} has changed since it was loaded; load it again")
            self._mixed.place(entry.key, prepared)
            with self._lock:
                entry.in_memory = True

    def _make_room(self) -> None:
        """Let those leave that nobody holds, the one used longest ago first, until the budget is kept."""
        while True:
            with self._lock:
                if self._budget is None or self._taken() <= self._budget:
                    return
                idle = [entry for entry in self._keys.values() if entry.in_memory and not entry.holders]
                if not idle:
                    return
            self._leave(min(idle, key=lambda entry: entry.used))

    def _leave(self, entry: _Entry) -> None:
        """Out of memory, unless somebody has asked for it meanwhile."""
        with entry.moving:
            with self._lock:
                if not entry.in_memory or entry.holders:
                    return
                entry.in_memory = False  # whoever asks from now on waits until it has left, and reads it again
            self._mixed.remove(entry.key)

    def _forget(self, entry: _Entry) -> None:
        with self._lock:
            entry.forgotten = True
            held = entry.holders > 0
        if not held:
            self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        self._leave(entry)
        with self._lock:
            self._keys.pop(entry.key, None)


def _adapter_folder(path: Path) -> Path:
    """The folder itself, or the adapter of a run. Raises UserError."""
    if not layout.is_adapter(path) and layout.is_adapter(path / "adapter"):
        path = path / "adapter"
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    return path.resolve()


def _digest(folder: Path) -> str:
    """Of the names and contents of the files that are read. Raises OSError."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _READ:
            found.update(f"{path.name}\n".encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
