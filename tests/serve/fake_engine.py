"""A stand-in for an engine: answers as a test wrote them, one thread for each, with delays and failures."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tunesmith.serve.ask import Ask, Cancel, End, Put, Token

Step = Token | End | float | Exception  # seconds to wait; an exception is raised by `submit` if it comes first


class FakeEngine:
    """`script` gives an ask's steps; an End of reason stop is added where none stands."""

    name = "fake"

    def __init__(self, script: Callable[[Ask], Iterable[Step]], *, context: int | None = 512):
        self.script, self.limit = script, context
        self.asks: list[Ask] = []
        self.cancelled: list[Ask] = []
        self.models: set[str] | None = None  # those that there are; None: all
        self.threads: list[threading.Thread] = []

    def submit(self, ask: Ask, put: Put) -> Cancel:
        if self.models is not None and ask.model not in self.models:
            raise LookupError(ask.model)
        steps = list(self.script(ask))
        if steps and isinstance(steps[0], Exception):
            raise steps[0]
        self.asks.append(ask)
        stop = threading.Event()

        def cancel() -> None:
            if not stop.is_set():
                stop.set()
                self.cancelled.append(ask)

        def run() -> None:
            sent = 0
            for step in steps:
                if isinstance(step, float):
                    stop.wait(step)
                if stop.is_set():
                    return put(End("cancelled"))
                if isinstance(step, End):
                    return put(step)
                if isinstance(step, Token):
                    if sent == ask.max_tokens:
                        return put(End("length"))
                    put(step)
                    sent += 1
            put(End("length" if sent == ask.max_tokens else "stop"))

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()
        return cancel

    def context(self, model: str) -> int | None:
        return self.limit

    def load(self, name: str, folder: Any) -> None:
        raise NotImplementedError

    def unload(self, name: str) -> None:
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        return {"running": 0.0}

    def close(self, patience: float) -> None:
        for thread in self.threads:
            thread.join(patience)


def tokens_of(tokenizer: Any, text: str) -> list[Token]:
    """A text as an answer's tokens; special tokens in it are meant."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [Token(index, -0.5, tuple((other, -0.5 - place) for place, other in enumerate((index, 65, 66)))) for index in ids]


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
