"""Small finished runs of several methods over one base, for the tests of exports."""

from pathlib import Path
from typing import Any

from tests import runs

STRONG: dict[str, Any] = {"train.learning_rate": 0.02, "train.steps": 3, "train.checkpoint_every": 3}


def run_of(base: Path, place: Path, name: str, **changes: Any) -> Path:
    """A run called `name` that changes every answer of the model in `base`; done once for a place."""
    data = place / "rows.jsonl"
    if not data.exists():
        runs.write_rows(data)
    if not (place / name).exists():
        runs.finish(runs.settings(base, data, place / name, STRONG | changes))
    return place / name
