"""Engines over tiny models, clients that wait for answers, and what a model answers when it is asked alone and recomputes everything."""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.tiny_models import tiny
from tunesmith.models.load import Base, attention
from tunesmith.models.source import Located
from tunesmith.serve.ask import Ask, End, Token
from tunesmith.serve.builtin.engine import Builtin

WAIT = 60.0  # seconds


def base_of(model: Any) -> Base:
    return Base(model, None, Path("nowhere"), torch.float32, False, "eager")


@contextmanager
def engine_of(model: Any, **settings: Any) -> Iterator[Builtin]:
    """`model`: one of `tiny_models`, by name, or a model itself."""
    model = tiny(model) if isinstance(model, str) else model
    engine = Builtin(base_of(model), Located(Path("nowhere"), "base", "folder", "nowhere"), **{"cache_tokens": 4096, **settings})
    try:
        yield engine
    finally:
        engine.close(0.0)


class Client:
    """One answer that is waited for."""

    def __init__(self, engine: Builtin, ids: Sequence[int], tokens: int = 8, model: str = "base", **settings: Any):
        self.came: queue.Queue[Token | End] = queue.Queue()
        ask = Ask(model, tuple(ids), tokens, **{"stop_ids": frozenset(), "logprobs": 3, **settings})
        self.cancel = engine.submit(ask, self.came.put)

    def token(self) -> Token:
        found = self.came.get(timeout=WAIT)
        assert isinstance(found, Token), found
        return found

    def rest(self) -> tuple[list[Token], End]:
        tokens: list[Token] = []
        while not isinstance(found := self.came.get(timeout=WAIT), End):
            tokens.append(found)
        assert self.came.empty(), "something came behind the end"
        return tokens, found


def alone(model: Any, ids: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """The likeliest tokens one after the other, without a cache, by the class's own attention; and their log-probabilities [count, V]."""
    ids, found = list(ids), []
    with torch.no_grad(), attention(model, "eager"):
        for _ in range(count):
            found.append(F.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float(), -1))
            ids.append(int(found[-1].argmax()))
    return ids[len(ids) - count :], torch.stack(found)


def agree_with(model: Any, ids: Sequence[int], tokens: Sequence[Token]) -> None:
    """The same in one pass over prompt and answer: a token that is the likeliest behind all before it is what the model says alone."""
    whole = [*ids, *(token.id for token in tokens)]
    with torch.no_grad(), attention(model, "eager"):
        logits_TV = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, len(ids) - 1 : -1].float()
    agree(tokens, (logits_TV.argmax(-1).tolist(), F.log_softmax(logits_TV, -1)))


def agree(tokens: Sequence[Token], truth: tuple[list[int], torch.Tensor]) -> None:
    ids, logprobs_NV = truth
    assert [token.id for token in tokens] == ids
    for token, logprobs_V in zip(tokens, logprobs_NV, strict=True):
        assert token.logprob is not None and abs(token.logprob - logprobs_V[token.id].item()) < 1e-4
        assert all(abs(value - logprobs_V[other].item()) < 1e-4 for other, value in token.top)
