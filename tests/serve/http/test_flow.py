"""Between the engine's thread and the event loop: order, cancelling, clients that leave, streams that are kept alive."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serve.fake_engine import FakeEngine, tokens_of
from tests.serve.http.talking import tokenizer_of
from tunesmith.serve.ask import Ask, End, Full, Token
from tunesmith.serve.http import flow
from tunesmith.serve.http.errors import Problem
from tunesmith.serve.http.flow import Flow, Left, events, unless_left


def asks(count: int) -> list[Ask]:
    return [Ask("base", (1,), 50, frozenset(), seed=n) for n in range(count)]


def hello(ask: Ask) -> list[Any]:
    return [*tokens_of(tokenizer_of("qwen2.5"), "Hello"), 0.01, *tokens_of(tokenizer_of("qwen2.5"), " you")]


def test_tokens_of_all_answers_come_in_order():
    async def run() -> dict[int, list[Any]]:
        started = Flow(FakeEngine(hello), asks(3))
        await started.start()
        found: dict[int, list[Any]] = {0: [], 1: [], 2: []}
        async for index, item in started.items():
            found[index].append(item)
        return found

    expected = [item for item in hello(asks(1)[0]) if isinstance(item, Token)]
    for items in asyncio.run(run()).values():
        assert items == [*expected, End("stop")]


def test_what_is_dropped_is_cancelled_and_not_waited_for():
    engine = FakeEngine(lambda ask: [*tokens_of(tokenizer_of("qwen2.5"), "a"), 30.0])

    async def run() -> int:
        started, count = Flow(engine, asks(2)), 0
        await started.start()
        async for index, _ in started.items():
            count += 1
            started.drop(index)
        return count

    assert asyncio.run(asyncio.wait_for(run(), 5)) == 2 and len(engine.cancelled) == 2


@pytest.mark.parametrize(
    ("error", "raised", "status"), [(Full(), Full, 0), (ValueError("no"), Problem, 400), (LookupError("x"), Problem, 404)]
)
def test_where_one_is_not_taken_none_goes_on(error, raised, status):
    engine = FakeEngine(lambda ask: [error] if ask.seed == 1 else [30.0])

    async def run() -> None:
        await Flow(engine, asks(2)).start()

    with pytest.raises(raised) as found:
        asyncio.run(run())
    assert [ask.seed for ask in engine.cancelled] == [0]
    assert not status or found.value.status == status


def test_a_client_that_leaves_while_its_asks_are_handed_over():
    entered, go_on = threading.Event(), threading.Event()

    def script(ask: Ask) -> list[Any]:
        entered.set()
        go_on.wait(5)
        return [30.0]

    engine = FakeEngine(script)

    async def run() -> None:
        starting = asyncio.ensure_future(Flow(engine, asks(1)).start())
        await asyncio.to_thread(entered.wait, 5)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        go_on.set()
        for _ in range(500):
            if engine.cancelled:
                return
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(engine.cancelled) == 1


def test_work_ends_where_the_client_leaves():
    undone: list[bool] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            undone.append(True)

    async def leaves() -> dict[str, str]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def run() -> None:
        await unless_left(SimpleNamespace(receive=leaves), work())  # type: ignore[arg-type]

    with pytest.raises(Left):
        asyncio.run(run())
    assert undone == [True]


async def _stays() -> Any:
    await asyncio.sleep(30)


def sent(source: AsyncGenerator[Any, None], receive: Any = _stays) -> tuple[list[bytes], list[str]]:
    bodies: list[bytes] = []
    closed: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            bodies.append(message["body"])

    async def run() -> None:
        await asyncio.wait_for(events(source, lambda: closed.append("closed"))({}, receive, send), 5)

    asyncio.run(run())
    return bodies, closed


def test_events_and_their_end():
    async def source() -> AsyncGenerator[Any, None]:
        yield {"a": "ü"}
        yield {"b": 1}

    assert sent(source()) == (['data: {"a":"ü"}\n\n'.encode(), b'data: {"b":1}\n\n', b"data: [DONE]\n\n"], ["closed"])


def test_an_error_is_an_event_and_then_the_end():
    async def source() -> AsyncGenerator[Any, None]:
        yield {"a": 1}
        raise Problem(500, "broken")

    bodies, closed = sent(source())
    assert b'"error"' in bodies[1] and b"broken" in bodies[1] and bodies[2] == b"data: [DONE]\n\n" and closed


def test_silence_is_kept_alive(monkeypatch):
    monkeypatch.setattr(flow, "KEEP_ALIVE_SECONDS", 0.02)

    async def source() -> AsyncGenerator[Any, None]:
        await asyncio.sleep(0.1)
        yield {"a": 1}

    bodies, _ = sent(source())
    assert bodies[0] == b": keep-alive\n\n" and bodies[-2:] == [b'data: {"a":1}\n\n', b"data: [DONE]\n\n"]


def test_a_client_that_leaves_closes_the_source():
    ended: list[str] = []

    async def source() -> AsyncGenerator[Any, None]:
        try:
            yield {"a": 1}
            await asyncio.sleep(30)
        finally:
            ended.append("source")

    async def leaves() -> dict[str, str]:
        await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    bodies, closed = sent(source(), leaves)
    assert ended == ["source"] and closed == ["closed"] and len(bodies) == 1


def test_a_source_that_was_never_begun_is_closed_too():
    async def source() -> AsyncGenerator[Any, None]:
        yield {"a": 1}

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    assert sent(source(), gone)[1] == ["closed"]
