"""The same load for every server: so many clients, each of which asks again as soon as it has its answer, until the time is over.

Imported inside the peers' own environments: the standard library and psutil only. Only tokens that came in time are counted, so that no
contender is measured while its last answers run out.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

Answer = Callable[[dict[str, Any], int], AsyncIterator[int]]  # (request, its number) -> how many tokens came, each time some came


def read_job() -> dict[str, Any]:
    """The job file that the script was started with."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def tell(job: dict[str, Any], found: dict[str, Any]) -> None:
    """The result, where the parent looks for it."""
    Path(job["result"]).write_text(json.dumps(found), encoding="utf-8")


class Watch:
    """When tokens came."""

    def __init__(self, seconds: float):
        self.begun = time.perf_counter()
        self.end = self.begun + seconds
        self.first: list[float] = []
        self.between: list[float] = []
        self.tokens = self.prompt_tokens = self.answers = 0

    @property
    def over(self) -> bool:
        return time.perf_counter() >= self.end

    def answer(self, request: dict[str, Any]) -> Callable[[int], None]:
        """To be called with the number of tokens whenever some came."""
        last, is_first = time.perf_counter(), True

        def came(tokens: int) -> None:
            nonlocal last, is_first
            now = time.perf_counter()
            if now > self.end or not tokens:
                return
            if is_first:
                self.prompt_tokens += len(request["ids"])
            (self.first if is_first else self.between).append((now - last) / (1 if is_first else tokens))
            self.tokens += tokens
            last, is_first = now, False

        return came

    def figures(self) -> dict[str, Any]:
        seconds = min(time.perf_counter(), self.end) - self.begun
        return {
            "seconds": seconds,
            "answers": self.answers,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "tokens_per_second": self.tokens / seconds,
            "first_token_seconds": spread(self.first),
            "between_tokens_seconds": spread(self.between),
        }


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in (("p50", 0.5), ("p95", 0.95))}


def numbered(job: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The job's requests, over and over."""
    requests = job["requests"]
    return ((number, requests[number % len(requests)]) for number in range(1 << 30))


async def clients(job: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The figures of the job's clients; a short round before is not counted."""
    short = [{**request, "tokens": 4} for request in job["requests"][-job["clients"] :]]
    await asyncio.gather(*[_drained(answer(request, -1 - number)) for number, request in enumerate(short)])
    requests, watch = numbered(job), Watch(job["seconds"])

    async def client() -> None:
        while not watch.over:
            number, request = next(requests)
            came = watch.answer(request)
            async for tokens in answer(request, number):
                came(tokens)
                if watch.over:
                    return
            watch.answers += 1

    await asyncio.gather(*[client() for _ in range(job["clients"])])
    return watch.figures()


async def _drained(came: AsyncIterator[int]) -> None:
    async for _ in came:
        pass


class Memory:
    """The most that this process and its children held at once, private and shared memory, sampled twice a second."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            held = sum(_private(process.pid) for process in [me, *me.children(recursive=True)])
            self.peak_bytes = max(self.peak_bytes, held)


def _private(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
