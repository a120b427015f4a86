"""Who is let in, how long a body may be, and how much room an answer has."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import renderer_of, says
from tunesmith.serve.catalog import Model
from tunesmith.serve.http.errors import Problem
from tunesmith.serve.http.service import UNBOUNDED, asks_of, check_length, read_body
from tunesmith.serve.http.wire import ChatRequest


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "base", "messages": [{}], **fields})


def room(prompt: int, limit: int | None, *, context: int | None = 100, **fields: Any) -> int:
    engine = FakeEngine(says("qwen2.5"), context=context)
    model = Model("base", renderer_of("qwen2.5"))
    shared: Any = {"limit": limit, "logprobs": -1, "constraint": None, "first_seed": 0}
    return asks_of(engine, model, asked(**fields), [1] * prompt, **shared)[0].max_tokens


def test_the_room_of_an_answer():
    assert room(40, None) == 60 and room(40, 60) == 60 and room(40, 5) == 5
    assert room(40, None, context=None) == UNBOUNDED and room(40, 7, context=None) == 7
    for prompt, limit in ((100, None), (40, 61)):
        with pytest.raises(Problem) as raised:
            room(prompt, limit)
        assert raised.value.code == "context_length_exceeded" and "100" in raised.value.message
    with pytest.raises(Problem, match="min_tokens"):
        room(40, 5, min_tokens=6)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    engine, model = FakeEngine(says("qwen2.5"), context=10), Model("base", renderer_of("qwen2.5"))
    longest = max(map(len, renderer_of("qwen2.5").tokenizer.get_vocab()))
    check_length(engine, model, "x" * 10 * longest)
    with pytest.raises(Problem) as raised:
        check_length(engine, model, "x" * (10 * longest + 1))
    assert raised.value.code == "context_length_exceeded" and str(10 * longest + 1) in raised.value.message


def test_stop_tokens():
    engine, model = FakeEngine(says("qwen2.5")), Model("base", renderer_of("qwen2.5"))
    shared: Any = {"limit": 5, "logprobs": -1, "constraint": None, "first_seed": 0}
    stops = renderer_of("qwen2.5").stops
    assert asks_of(engine, model, asked(stop_token_ids=[7]), [1], **shared)[0].stop_ids == stops | {7}
    assert asks_of(engine, model, asked(stop_token_ids=[7], ignore_eos=True), [1], **shared)[0].stop_ids == {7}


def test_a_body_that_is_too_long_is_refused_before_it_is_whole():
    async def parts(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 10

    def read(count: int, said: str = "") -> bytes:
        request: Any = SimpleNamespace(headers={"content-length": said} if said else {}, stream=lambda: parts(count))
        return asyncio.run(read_body(request, 35))

    assert read(3) == b"x" * 30
    for count, said in ((1_000_000_000, ""), (0, "36"), (4, "")):
        with pytest.raises(Problem) as raised:
            read(count, said)
        assert raised.value.status == 413
