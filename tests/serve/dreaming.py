"""An engine whose model is a hash: logits drawn from what came before. Everything else of it is real: sampling, penalties, constraints,
stop tokens, limits, cancelling."""

import threading
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch

from tunesmith.serve.ask import Ask, Cancel, End, Full, Put
from tunesmith.serve.builtin.constraints import matcher_of
from tunesmith.serve.builtin.sampling import Choice, choose


@dataclass
class Dream:
    ask: Ask
    put: Put
    choice: Choice
    ids: list[int] = field(default_factory=list)
    gone: bool = False


class DreamEngine:
    """One thread takes one step of all answers after another. `pace`: seconds a step."""

    name = "dream"

    def __init__(self, tokenizer: Any, models: tuple[str, ...], *, limit: int = 1024, places: int = 16, pace: float = 0.0):
        self.tokenizer, self.models, self.limit, self.places, self.pace = tokenizer, set(models), limit, places, pace
        self._running: list[Dream] = []
        self._there = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, put: Put) -> Cancel:
        if ask.model not in self.models:
            raise LookupError(ask.model)
        matcher = matcher_of(ask.constraint, self.tokenizer, ask.stop_ids) if ask.constraint else None
        dream = Dream(ask, put, Choice(ask, len(self.tokenizer), matcher))
        with self._there:
            if len(self._running) >= self.places:
                raise Full
            self._running.append(dream)
            self._there.notify()

        def cancel() -> None:
            dream.gone = True

        return cancel

    def context(self, model: str) -> int | None:
        return self.limit

    def load(self, name: str, folder: Any) -> None:
        self.models.add(name)

    def unload(self, name: str) -> None:
        self.models.remove(name)

    def figures(self) -> dict[str, float]:
        return {"running": float(len(self._running))}

    def close(self, patience: float) -> None:
        with self._there:
            self._closed = True
            self._there.notify()
        self._thread.join(patience)

    def _run(self) -> None:
        while not self._closed:
            with self._there:
                if not self._running:
                    self._there.wait(0.1)
                now = list(self._running)
            if self.pace:
                threading.Event().wait(self.pace)
            for dream in now:
                if not self._step(dream):
                    with self._there:
                        self._running.remove(dream)

    def _step(self, dream: Dream) -> bool:
        """Whether it goes on."""
        ask = dream.ask
        if dream.gone:
            dream.put(End("cancelled"))
            return False
        [token] = choose(self._logits(dream).unsqueeze(0), [dream.choice])
        if token is None:
            dream.put(End("error", dream.choice.trouble or "no number"))
            return False
        if token.id in ask.stop_ids:
            dream.put(End("stop"))
            return False
        dream.choice.take(token.id)
        dream.ids.append(token.id)
        dream.put(token)
        if dream.choice.finished:
            dream.put(End("stop"))
            return False
        if len(dream.ids) == ask.max_tokens:
            dream.put(End("length"))
            return False
        return True

    def _logits(self, dream: Dream) -> torch.Tensor:
        seed = zlib.crc32(repr((dream.ask.model, dream.ask.prompt_ids, dream.ids[-8:], len(dream.ids))).encode())
        return torch.randn(len(self.tokenizer), generator=torch.Generator().manual_seed(seed)) * 3
