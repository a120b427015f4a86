"""What is known of methods from runs that were made: one line of `evidence.jsonl` a run, measured here or published elsewhere.

docs/evidence.md says what the columns mean. Rows of different sources do not compare by seconds and memory, which are those of their
machine; by score they compare where model, data set and number of examples are the same.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).with_name("evidence.jsonl")
# What a task asks for. Published runs are mostly of the first kind.
TASK_KINDS = ("reasoning", "extraction", "classification", "chat")
LOWER_IS_BETTER = ("loss",)


@dataclass(frozen=True, slots=True)
class Row:
    """A run. None is unknown."""

    method: str  # a name of `methods.settings.SETTINGS`, or that of a method which is not here
    model: str
    model_parameters: int
    task_kind: str  # one of TASK_KINDS
    dataset: str
    examples: int  # rows trained on, each as often as it was
    score: float
    score_name: str
    score_before: float | None  # the base model's, on the same rows
    forgetting: float | None  # loss on general text after training minus before, in nats a token
    trainable_parameters: int | None
    memory_bytes: int  # peak
    seconds: float | None  # of training, on a machine that did nothing else
    learning_rate: float
    settings: dict[str, Any]  # of the method, where they are not its defaults
    source: str  # who measured it, when and on what

    @property
    def lower_is_better(self) -> bool:
        return self.score_name in LOWER_IS_BETTER


def load(path: Path = EVIDENCE) -> list[Row]:
    """Every row, in the file's order."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def add(rows: Iterable[Row], path: Path = EVIDENCE) -> None:
    """Write rows behind those that are there; a row of the same source, method and data set makes way."""

    def key(row: Row) -> tuple[str, str, str, str]:
        return row.source, row.model, row.dataset, row.method

    new = {key(row): row for row in rows}
    kept = [row for row in (load(path) if path.exists() else []) if key(row) not in new]
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in [*kept, *new.values()])
    path.write_text(text, encoding="utf-8")


def columns() -> list[str]:
    """The names of a row's values, in order."""
    return [field.name for field in fields(Row)]
