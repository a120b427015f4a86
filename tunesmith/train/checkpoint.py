"""Checkpoints: complete or absent. Written aside, flushed to the disk, renamed; the newest is found by its name.

checkpoints/step-120/  trained.safetensors    what is trained, by name, as fp32 (or the model's dtype where that is exact)
                       optimizer.safetensors  moments, and fp32 masters
                       state.json             step, counts, best; no times and no paths, so that two runs compare by bits
                       clock.json             seconds, which never repeat
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import UserError


@dataclass
class Progress:
    """What a run knows about itself after a step, besides tensors."""

    step: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    learned_tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0


@dataclass
class Clock:
    """Seconds in which the run was at work, over all its sittings."""

    seconds: float = 0.0
    seconds_to_first_step: float = 0.0
    seconds_after_first: float = 0.0
    tokens_after_first: int = 0


@dataclass
class Checkpoint:
    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: Progress
    clock: Clock = field(default_factory=Clock)


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `checkpoints/step-N` and remove the oldest beyond `keep`. Raises UserError where the disk will not take it."""
    target = folder / "checkpoints" / f"step-{checkpoint.progress.step}"

    def fill(aside: Path) -> None:
        save_file({name: t.contiguous() for name, t in checkpoint.trained.items()}, aside / "trained.safetensors")
        save_file({name: t.contiguous() for name, t in checkpoint.optimizer.items()}, aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps(asdict(checkpoint.progress), indent=2) + "\n", encoding="utf-8")
        (aside / "clock.json").write_text(json.dumps(asdict(checkpoint.clock)) + "\n", encoding="utf-8")

    write_whole(target, fill)
    for old in steps(folder)[:-keep]:
        shutil.rmtree(folder / "checkpoints" / f"step-{old}", ignore_errors=True)
    return target


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints, rising."""
    found = []
    for path in (folder / "checkpoints").glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        found += [int(match[1])] if match else []
    return sorted(found)


def newest(folder: Path) -> int:
    """The step of the newest complete checkpoint, 0 where there is none."""
    return max(steps(folder), default=0)


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, or None. Raises UserError for one that was damaged after it was written."""
    found = steps(folder)
    if not found:
        return None
    path = folder / "checkpoints" / f"step-{found[-1]}"
    try:
        progress = Progress(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        clock = Clock(**json.loads((path / "clock.json").read_text(encoding="utf-8")))
        return Checkpoint(load_file(path / "trained.safetensors"), load_file(path / "optimizer.safetensors"), progress, clock)
    except (OSError, SafetensorError, ValueError, TypeError) as error:  # ValueError: what is not JSON or not UTF-8
        before = f"the run goes on from step {found[-2]} then" if len(found) > 1 else "the run begins anew then"
        raise UserError(f"{path} is damaged ({error}); remove this folder and resume: {before}") from None


def write_whole(target: Path, fill: Callable[[Path], Any]) -> None:
    """Fill a folder aside, flush it, and put it in place of `target` in one rename, so that `target` is whole at any moment.

    Raises UserError where the disk is full or not writable; what stood at `target` before still stands then.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.new")
    gone = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        fill(aside)
        _open_to_readers(aside)
        _flush(aside)
        if target.exists():
            os.rename(target, gone)
        os.rename(aside, target)
        flush_file(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if gone.exists() and not target.exists():
            os.rename(gone, target)
        raise UserError(_refusal(target, error)) from None
    except BaseException:  # what was to be written turned out to be impossible, or somebody does not want to wait for it
        shutil.rmtree(aside, ignore_errors=True)
        if gone.exists() and not target.exists():
            os.rename(gone, target)
        raise
    shutil.rmtree(gone, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """safetensors makes files that their owner alone can read; a server often runs as somebody else. The umask decides."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o666 & ~mask)


def clean(folder: Path) -> None:
    """Remove what a kill left half-written; a folder that was moved away before its successor came is put back."""
    for parent in (folder, folder / "checkpoints"):
        for path in parent.glob(".*.old"):
            name = path.name[1:].rsplit(".", 2)[0]
            if not (parent / name).exists():
                os.rename(path, parent / name)
            else:
                shutil.rmtree(path, ignore_errors=True)
        for path in parent.glob(".*.new"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _refusal(target: Path, error: Exception) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    if full:
        return f"{target}: the disk is full; what was saved before is whole. Free some space, then `tunesmith resume`"
    return f"{target}: cannot be written ({error}); what was saved before is whole"


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            flush_file(path)
    flush_file(folder)


def flush_file(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Stopwatch:
    """Seconds since it was made, on a clock that never jumps."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._start
