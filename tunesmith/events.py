"""What happens in a run, as records, to and from one JSON line each.

`events.jsonl` in the run folder is the only truth about a run: the progress bar, the loss curve, the model card, a
notebook and the tests read these records and nothing else.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    run: str  # name of the run folder
    total_steps: int
    total_tokens: int  # tokens of all steps, as `tokens` below counts them
    trainable_parameters: int
    total_parameters: int
    device: str
    threads: int
    matmul_flops: float  # measured on this machine at this model's shapes; FLOP/s
    flops_per_token: float  # FLOP of forward and backward for one token in this run
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    step: int  # 1 is the first optimizer step
    loss: float  # mean over the learned tokens of this optimizer step, in nats
    learning_rate: float
    grad_norm: float  # before clipping
    tokens: int  # real tokens of this step: no padding, no virtual tokens
    computed_tokens: int
    learned_tokens: int
    tokens_per_second: float  # `tokens` over wall time after the first step
    peak_memory_bytes: int
    skipped: bool = False  # a non-finite loss: no update was made
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    step: int
    loss: float
    learned_tokens: int
    best: bool
    scores: dict[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    step: int
    path: str  # relative to the run folder
    seconds: float
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    step: int  # the last step that the restored checkpoint had finished
    dropped_events: int
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    message: str
    step: int = 0
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    steps: int
    loss: float  # mean over the learned tokens of the last tenth of the steps
    tokens: int
    computed_tokens: int
    learned_tokens: int
    seconds: float
    seconds_to_first_step: float
    tokens_per_second: float
    peak_memory_bytes: int
    time: float = field(default_factory=time.time)


Event = Started | Step | Evaluated | Saved | Resumed | Warned | Finished

EVENTS: dict[str, type[Event]] = {
    "started": Started,
    "step": Step,
    "evaluated": Evaluated,
    "saved": Saved,
    "resumed": Resumed,
    "warned": Warned,
    "finished": Finished,
}
NAMES = {record: name for name, record in EVENTS.items()}


def to_json(event: Event) -> str:
    """One line, without the line end. A number that is not finite is null: JSON has no other word for it."""
    values = {"event": NAMES[type(event)]} | {name: _finite(value) for name, value in dataclasses.asdict(event).items()}
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def from_json(line: str) -> Event:
    """Null becomes NaN again. Raises KeyError for an unknown event and TypeError for an unknown field."""
    values: dict[str, Any] = json.loads(line)
    values |= {name: math.nan for name, value in values.items() if value is None}
    return EVENTS[values.pop("event")](**values)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(path: Path) -> Iterator[Event]:
    """The events of a run, in order. A last line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield from_json(line.decode("utf-8"))


class EventLog:
    """Appends events to `events.jsonl`, each flushed, so that a kill loses at most the line being written."""

    def __init__(self, path: Path):
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115  closed by `close`

    def write(self, event: Event) -> None:
        self._file.write(to_json(event).encode("utf-8") + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def rewind(path: Path, step: int) -> int:
    """Drop what happened after optimizer step `step` finished, so that no step stands twice; how many events went."""
    kept, dropped = [], 0
    for event in read_events(path):
        later = getattr(event, "step", 0) > step or isinstance(event, Finished)
        dropped += later
        kept += [] if later else [to_json(event) + "\n"]
    aside = path.with_suffix(".jsonl.new")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
    return dropped
