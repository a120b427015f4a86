"""An engine's answers as a test reads them."""

import threading
from typing import Any

from tunesmith.serve.ask import Ask, End, Token


class Gathered:
    """A `put` that keeps what comes. Waits are bounded."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.ends: list[End] = []
        self._ended, self._begun = threading.Event(), threading.Event()

    def __call__(self, piece: Token | End) -> None:
        self._begun.set()
        if isinstance(piece, End):
            self.ends.append(piece)
            self._ended.set()
        else:
            self.tokens.append(piece)

    def end(self, seconds: float = 30.0) -> End:
        assert self._ended.wait(seconds), "no end came"
        return self.ends[0]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def asked(model: str, prompt: list[int], **changes: Any) -> Ask:
    told: dict[str, Any] = {"model": model, "prompt_ids": tuple(prompt), "max_tokens": 4, "stop_ids": frozenset({257})}
    return Ask(**told | changes)


def answer(engine: Any, ask: Ask, seconds: float = 30.0) -> tuple[list[int], End]:
    """The ids and the end."""
    found = Gathered()
    engine.submit(ask, found)
    end = found.end(seconds)
    return found.ids, end
