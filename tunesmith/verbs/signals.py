"""Ctrl-C and SIGTERM while a run is at work: the step is finished, a checkpoint is saved, then the verb ends."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Asked:
    """0, or the exit code with which to stop."""

    code = 0

    def __call__(self) -> int:
        return self.code


@contextmanager
def stopping() -> Iterator[Asked]:
    """Signals are noted instead of raised; a second Ctrl-C stops at once and loses the steps since the last checkpoint."""
    asked = Asked()

    def note(number: int, frame: FrameType | None) -> None:
        if asked.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.code = 130 if number == signal.SIGINT else 143
        print("\n… stopping after this step, a checkpoint will be saved (Ctrl-C again: at once)", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
