"""Answers in flight at a server that is asked over HTTP: one asyncio loop in a thread of its own, one client, each answer a task.

Whatever becomes of an answer, its `End` is put exactly once, from the loop's thread.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2

from tunesmith.serve.ask import Cancel, End, Full, Put, Token

PLENTY = httpx2.Limits(max_connections=None, max_keepalive_connections=64)  # how many may come is decided before a task is made
NEVER = httpx2.Timeout(None, connect=10.0)  # a long queue is no failure; a child that died closes its connections
DONE = "[DONE]"
GRACE = 0.3  # seconds until a process whose connections broke is seen to have ended

Answer = Callable[[], AsyncIterator[Token | End]]
Explain = Callable[[Exception], str]


class Refused(Exception):
    """The server answered with an error; its sentence."""


class Remote:
    """`limit` answers at a time; one more is `Full`. `explain` says what a broken connection means."""

    def __init__(self, address: str, key: str, limit: int, explain: Explain):
        self.limit = limit
        self._explain = explain
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine client", daemon=True)
        self._thread.start()
        self._client = httpx2.AsyncClient(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, limits=PLENTY, timeout=NEVER, trust_env=False
        )
        self._changed = threading.Condition()
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.open = True  # whether answers are taken on

    @property
    def running(self) -> int:
        """Answers in flight."""
        return self._running

    def begin(self, answer: Answer, put: Put) -> Cancel:
        """Let an answer come. Raises Full."""
        with self._changed:
            if not self.open or self._running >= self.limit:
                raise Full
            self._running += 1
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            ended = _Once(put)
            task = self._loop.create_task(self._follow(answer, ended))
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._finish(done, ended))
            tasks.append(task)

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self._loop.call_soon_threadsafe(start)
        return lambda: self._soon(cancel)  # behind `start`: the loop keeps their order

    async def _follow(self, answer: Answer, put: "_Once") -> None:
        try:
            async with contextlib.aclosing(answer()) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    put(piece)
                    if isinstance(piece, End):
                        return
            raise EOFError("the stream ended before the answer did")
        except Refused as error:
            put(End("error", str(error)))
        except (httpx2.HTTPError, httpx2.StreamError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
            await asyncio.sleep(GRACE)
            put(End("error", self._explain(error)))

    def _finish(self, task: asyncio.Task[None], put: "_Once") -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before its first step, so that nothing of it ever ran
            put(End("cancelled"))
        elif (error := task.exception()) is not None:
            put(End("error", f"{type(error).__name__}: {error}"))
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The JSON documents of a stream of server-sent events. Raises Refused where the server answers with an error."""
        async with self._client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                raise Refused(sentence_of(await response.aread(), response.status_code))
            async for line in response.aiter_lines():
                said = line.removeprefix("data:").strip()
                if said in (line, DONE) or not said:
                    continue  # a comment, a blank line, another field
                event = json.loads(said)
                if isinstance(event, dict) and "error" in event:
                    raise Refused(sentence_of(said.encode(), 500))
                yield event

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = 60.0) -> Any:
        """One request from another thread: the JSON document or the text that it gives. Raises Refused, httpx2.HTTPError."""
        return self.wait(self.request(method, path, body, seconds), seconds + 5)

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = 60.0) -> Any:
        """As `ask`, within the loop."""
        response = await self._client.request(method, path, json=body, timeout=seconds)
        if response.status_code != 200:
            raise Refused(sentence_of(response.content, response.status_code))
        return response.json() if "json" in response.headers.get("content-type", "") else response.text

    def wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        """What a coroutine gives, in the loop's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let a coroutine run whose result nobody waits for."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    def drain(self, patience: float) -> None:
        """Take nothing on any more; return when nothing is in flight, or after so many seconds with the rest cancelled."""
        until = time.monotonic() + patience
        with self._changed:
            self.open = False
            self._changed.wait_for(lambda: not self._running, max(0.0, until - time.monotonic()))
        self._soon(lambda: [task.cancel() for task in self._tasks])
        with self._changed:
            self._changed.wait_for(lambda: not self._running, 5.0)

    def close(self, patience: float) -> None:
        """Drain, and end the loop. May be called more than once."""
        if self._loop.is_closed():
            return
        self.drain(patience)
        self.wait(self._client.aclose(), 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def _soon(self, call: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing left to cancel
            self._loop.call_soon_threadsafe(call)


class _Once:
    """A `put` that lets nothing through behind the end."""

    def __init__(self, put: Put):
        self._put, self._ended = put, False

    def __call__(self, piece: Token | End) -> None:
        if not self._ended:
            self._ended = isinstance(piece, End)
            self._put(piece)


def sentence_of(content: bytes, status: int) -> str:
    """The message in an error of OpenAI's shape, or of any other."""
    text = content.decode("utf-8", "replace").strip()
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text or f"HTTP {status}"
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or f"HTTP {status}")
