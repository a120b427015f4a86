"""Small whole runs for the tests: rows to learn, settings, and what is compared between two run folders."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith import config, events
from tunesmith.train import loop

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tokens made by another version of the code must not be found, and the user's cache is no place for tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TUNESMITH_CACHE", str(folder))
        yield folder


def write_rows(path: Path, count: int = 24) -> Path:
    """Questions and answers of several lengths as JSON lines."""
    rows = [{"prompt": f"Spell {i}" + "!" * (i % 5), "completion": " ".join(NUMBERS[i % 12 : i % 12 + 1 + i % 3])} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(model: Path | str, data: Path | str, out: Path, changes: dict[str, Any] | None = None) -> config.Run:
    """Six steps of fp32 LoRA over about two hundred tokens each, with every `section.key` of `changes` on top."""
    values: dict[str, Any] = {
        "model": {"source": str(model), "dtype": "float32"},
        "data": {"train": str(data)},
        "method": {"name": "lora", "rank": 4},
        "train": {
            "steps": 6,
            "tokens_per_step": 200,
            "row_tokens": 256,
            "threads": 1,
            "checkpoint_every": 3,
            "keep": 1,
            "learning_rate": 0.005,
        },
        "out": str(out),
    }
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        if section:
            values.setdefault(section, {})[name] = value
        else:
            values[name] = value
    return config.parse(values)


def quiet(sentence: str) -> None:
    """A `tell` that says nothing."""


def finish(run: config.Run) -> list[events.Event]:
    """The events of a whole run."""
    return list(loop.train(run, tell=quiet))


def stop_after(calls: int, code: int = 130) -> Callable[[], int]:
    """A `stop` that asks to stop after so many steps of a sitting."""
    asked = iter([0] * (calls - 1) + [code])
    return lambda: next(asked)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The step events of a run folder, without what differs from time to time."""
    timeless = ("time", "tokens_per_second", "peak_memory_bytes")
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in timeless} for line in lines if line["event"] == "step"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that may not differ between two runs of the same settings, by its path in the run folder."""
    timed = {"clock.json", "events.jsonl", "loss.png", "README.md", "run.yaml", ".lock"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name not in timed}
