"""The run folder, in which all verbs meet: what is written at the start and at the end of a run."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith import config, events
from tunesmith.errors import UserError
from tunesmith.train import checkpoint

RUN, PLAN, DATA, EVENTS = "run.yaml", "plan.json", "data.json", "events.jsonl"
LOCK = ".lock"


def check(out: str) -> Path:
    """The path of a run folder to be. Raises UserError where something stands there; nothing is written, nothing overwritten."""
    folder = Path(out).expanduser()
    if (folder / RUN).exists():
        begun = checkpoint.steps(folder)
        state = f"it has a checkpoint of step {begun[-1]}" if begun else "it has no checkpoint yet"
        raise UserError(f"{folder} already holds a run ({state}): go on with `tunesmith resume {folder}`, or take another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no run; take another --out")
    return folder


def begin(out: str) -> Path:
    """A new, empty run folder. Raises UserError where it cannot be made, too."""
    folder = check(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); take another --out") from None
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in a run folder: two processes in one run would mix their steps. Raises UserError where another is at work."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is at work in this run; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def withdraw(folder: Path) -> None:
    """Take back a run that was refused before its first event, so that the mended command finds its folder free."""
    if any(events.read_events(folder / EVENTS)) or checkpoint.steps(folder):
        return
    for name in (RUN, DATA, PLAN, EVENTS, LOCK):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def is_finished(folder: Path) -> bool:
    """Whether the run's last event says that everything was written."""
    return any(isinstance(event, events.Finished) for event in events.read_events(folder / EVENTS))


def open_run(name: str | Path) -> tuple[Path, config.Loaded]:
    """A run folder and its settings. Raises UserError for a folder that holds no run."""
    folder = Path(name).expanduser()
    if not (folder / RUN).is_file():
        what = f"{RUN} is missing" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: no run here ({what})")
    return folder, config.load(folder / RUN)


def write_json(path: Path, value: Any) -> None:
    """A JSON document, whole at any moment."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    checkpoint.flush_file(aside)
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is missing or damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return value
