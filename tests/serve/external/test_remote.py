"""Answers in flight: each ends once, whatever becomes of it. Against real servers: test_vllm.py, test_llamacpp.py."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.serve.external.gathered import Gathered
from tunesmith.serve.ask import End, Full, Token
from tunesmith.serve.external.remote import Refused, Remote, sentence_of


@pytest.fixture
def remote() -> Iterator[Remote]:
    one = Remote("http://127.0.0.1:9", "key", 2, lambda error: f"broken: {error}")
    try:
        yield one
    finally:
        one.close(0)


async def counting() -> AsyncIterator[Token | End]:
    yield Token(1)
    yield End("stop")
    yield Token(2)


async def endless() -> AsyncIterator[Token | End]:
    yield Token(1)
    await asyncio.sleep(600)
    yield End("stop")


async def torn() -> AsyncIterator[Token | End]:
    yield Token(1)


async def refused() -> AsyncIterator[Token | End]:
    raise Refused("no")
    yield End("stop")


async def mistaken() -> AsyncIterator[Token | End]:
    raise ZeroDivisionError("oh")
    yield End("stop")


@pytest.mark.parametrize(
    ("answer", "ids", "reason", "words"),
    [
        (counting, [1], "stop", ""),
        (torn, [1], "error", "broken: the stream ended before the answer did"),
        (refused, [], "error", "no"),
        (mistaken, [], "error", "ZeroDivisionError: oh"),
    ],
)
def test_an_answer_ends_once(remote: Remote, answer, ids: list[int], reason: str, words: str) -> None:
    found = Gathered()
    remote.begin(answer, found)
    assert found.end() == End(reason, words)  # type: ignore[arg-type]
    remote.drain(5)
    assert (found.ids, len(found.ends), remote.running) == (ids, 1, 0)


def test_cancelled_before_its_first_step(remote: Remote) -> None:
    found = Gathered()
    remote.begin(endless, found)()
    assert found.end() == End("cancelled")


def test_full_and_closed(remote: Remote) -> None:
    found = [Gathered(), Gathered()]
    for each in found:
        remote.begin(endless, each)
    with pytest.raises(Full):
        remote.begin(counting, Gathered())
    remote.close(0.1)
    assert [each.end() for each in found] == [End("cancelled")] * 2
    with pytest.raises(Full):
        remote.begin(counting, Gathered())


def test_a_server_that_is_not_there(remote: Remote) -> None:
    async def asked() -> AsyncIterator[Token | End]:
        async for _ in remote.events("/v1/completions", {}):
            yield Token(1)

    found = Gathered()
    remote.begin(asked, found)
    assert found.end().message.startswith("broken: ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"error": {"message": "a", "code": 400}}', "a"),
        (b'{"detail": "b"}', "b"),
        (b'{"error": "c"}', "c"),
        (b"plain", "plain"),
        (b"", "HTTP 500"),
    ],
)
def test_the_sentence_of_an_error(content: bytes, sentence: str) -> None:
    assert sentence_of(content, 500) == sentence
