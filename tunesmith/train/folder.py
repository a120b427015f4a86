"""The run folder, in which all verbs meet: what is written at the start and at the end of a run."""

import json
import os
from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.train import checkpoint

RUN, PLAN, DATA, EVENTS = "run.yaml", "plan.json", "data.json", "events.jsonl"


def begin(out: str) -> Path:
    """A new, empty run folder. Raises UserError where one stands already or it cannot be made; nothing is overwritten."""
    folder = Path(out).expanduser()
    if (folder / RUN).exists():
        begun = checkpoint.steps(folder)
        state = f"it has a checkpoint of step {begun[-1]}" if begun else "it has no checkpoint yet"
        raise UserError(f"{folder} already holds a run ({state}): go on with `tunesmith resume {folder}`, or take another --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no run; take another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); take another --out") from None
    return folder


def open_run(name: str | Path) -> tuple[Path, config.Loaded]:
    """A run folder and its settings. Raises UserError for a folder that holds no run."""
    folder = Path(name).expanduser()
    if not (folder / RUN).is_file():
        raise UserError(f"{folder}: no run here ({RUN} is missing)")
    return folder, config.load(folder / RUN)


def write_json(path: Path, value: Any) -> None:
    """A JSON document, whole at any moment."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is missing or damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return value
