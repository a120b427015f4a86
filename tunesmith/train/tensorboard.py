"""Events as TensorBoard files, in `tensorboard/` of the run folder: one more reader of `events.jsonl`.

The files are made anew from the log whenever a run is begun or resumed, so that they never hold a step that was rewound.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith import events
from tunesmith.errors import UserError
from tunesmith.train import folder

FOLDER = "tensorboard"


def require() -> None:
    """Raises UserError where the package is not installed; asked before a run begins."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UserError("train.tensorboard needs the package tensorboard: pip install tensorboard, or leave the setting at false") from None


def mirrored(out: Path, happening: Iterator[events.Event]) -> Iterator[events.Event]:
    """The same events; what the run folder's log holds already and each new one is written to `out/tensorboard` too."""
    from torch.utils.tensorboard.writer import SummaryWriter

    shutil.rmtree(out / FOLDER, ignore_errors=True)
    writer = SummaryWriter(str(out / FOLDER))  # type: ignore[no-untyped-call]
    try:
        for event in events.read_events(out / folder.EVENTS):
            _write(writer, event)
        for event in happening:
            _write(writer, event)
            yield event
    finally:
        writer.close()  # type: ignore[no-untyped-call]


def scalars(event: events.Event) -> dict[str, float]:
    """The curves that an event adds a point to."""
    if isinstance(event, events.Step):
        return {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "speed/tokens_per_second": event.tokens_per_second,
            "memory/peak_bytes": event.peak_memory_bytes,
        }
    if isinstance(event, events.Evaluated):
        return {"evaluate/loss": event.loss} | {f"evaluate/{name}": score for name, score in event.scores.items()}
    return {}


def _write(writer: Any, event: events.Event) -> None:
    for name, value in scalars(event).items():
        writer.add_scalar(name, value, getattr(event, "step", 0), walltime=event.time)
