"""The engine's thread and the event loop: answers come over, a client that leaves cancels them, streams are kept alive.

engine's thread ──put──► Flow ──► endpoint ──► events() ──► client
                ◄─cancel─┘                        └── has it left?
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

from starlette.requests import Request

from tunesmith.serve.ask import Ask, Cancel, End, Engine, Put, Token
from tunesmith.serve.http.errors import Problem, bad, body, problem_of

KEEP_ALIVE_SECONDS = 15.0  # proxies cut connections on which nothing comes for a minute or less
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Left(Exception):
    """The client is gone: nobody reads what would be sent."""


class Flow:
    """The answers of one request, in the order in which their tokens come. Whoever starts it closes it."""

    def __init__(self, engine: Engine, asks: Sequence[Ask]):
        self._engine, self._asks = engine, asks
        self._cancels: dict[int, Cancel] = {}
        self._open = set(range(len(asks)))
        self._came: deque[tuple[int, Token | End]] = deque()
        self._wake, self._waking = asyncio.Event(), False
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def start(self) -> None:
        """Hand all asks to the engine, in a thread: compiling a schema may take a second. Raises Problem, Full; then none goes on."""
        submitting = asyncio.ensure_future(asyncio.to_thread(self._submit))
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(self._too_late)
            self._closed = True
            raise
        except LookupError as error:
            raise Problem(404, f"The model {self._asks[0].model!r} does not exist any more.", code="model_not_found") from error
        except ValueError as error:
            raise bad(str(error)) from error

    def _too_late(self, submitting: "asyncio.Future[None]") -> None:
        if submitting.cancelled() or submitting.exception() is None:
            self.close()

    def _submit(self) -> None:
        try:
            for index, ask in enumerate(self._asks):
                if self._closed:
                    break
                self._cancels[index] = self._engine.submit(ask, self._put(index))
        except BaseException:
            self.close()
            raise

    def _put(self, index: int) -> Put:
        def put(item: Token | End) -> None:
            self._came.append((index, item))
            if not self._waking:  # one call over to the loop for all that came meanwhile
                self._waking = True
                with contextlib.suppress(RuntimeError):  # the loop was closed: the server ends
                    self._loop.call_soon_threadsafe(self._awake)

        return put

    def _awake(self) -> None:
        self._waking = False
        self._wake.set()

    async def items(self) -> AsyncGenerator[tuple[int, Token | End], None]:
        """(which ask, what came), until all have ended or were dropped."""
        while self._open:
            await self._wake.wait()
            self._wake.clear()
            while self._came:
                index, item = self._came.popleft()
                if index not in self._open:
                    continue
                if isinstance(item, End):
                    self._open.discard(index)
                yield index, item

    def drop(self, index: int) -> None:
        """Enough of this one: its place is free at the engine's next step."""
        self._open.discard(index)
        if not self._open:
            self._wake.set()
        self._cancels[index]()

    def close(self) -> None:
        """Cancel what has not ended."""
        self._closed = True
        for index, cancel in list(self._cancels.items()):
            if index in self._open:
                cancel()


async def unless_left(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, which is cancelled where the client leaves before. Raises Left then. The body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Left
    finally:
        await _ended(leaving, working)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancelled where they run, and waited for, so that their `finally` has been done."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def events(source: AsyncGenerator[Any, None], close: Callable[[], None]) -> Callable[[Any, Receive, Send], Awaitable[None]]:
    """An ASGI answer that sends what `source` yields as server-sent events, and [DONE]; an error of `source` is an event as well.
    At the end, whichever it is, `source` is closed and `close` is called: a generator that was never begun has no `finally`."""

    async def respond(scope: Any, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(_send_all(source, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not isinstance(sending.exception(), OSError | None):  # OSError: it left while something was sent
                sending.result()
        finally:
            await _ended(leaving, sending)
            close()

    return respond


async def _send_all(source: AsyncGenerator[Any, None], send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(_kept_alive(source)) as items:
            async for item in items:
                await send({"type": "http.response.body", "body": _event(item), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        await source.aclose()


async def _kept_alive(source: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """None where nothing came for a while, and at the end `...`."""
    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(source))
            await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS)
            if not coming.done():
                yield None
                continue
            done, coming = coming, None
            try:
                item = done.result()
            except StopAsyncIteration:
                break
            except Exception as error:
                item = body(problem_of(error))
                yield item
                break
            yield item
        yield ...
    finally:
        if coming is not None:
            await _ended(coming)


def _event(item: Any) -> bytes:
    if item is None:
        return b": keep-alive\n\n"
    return b"data: " + (b"[DONE]" if item is ... else json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()) + b"\n\n"
