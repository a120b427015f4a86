"""Ctrl-C and SIGTERM while a run is at work: the step is finished, a checkpoint is saved, then the verb ends. While files are written:
what was begun goes."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tunesmith.errors import Interrupted


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


@contextmanager
def tidying() -> Iterator[None]:
    """SIGTERM ends what is at work as Ctrl-C does, so that folders that were begun aside go: by itself it would end the process at once.

    Raises Interrupted.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(143, "stopped")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
