"""The built-in engine under the load of `serve_load.py`, asked as the HTTP side asks it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from serve_load import Memory, clients, read_job, tell

from tunesmith import hardware
from tunesmith.models import load
from tunesmith.models.source import locate
from tunesmith.serve.ask import Ask, End
from tunesmith.serve.builtin.engine import Builtin


async def measured(engine: Builtin, job: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()

    async def answer(request: dict[str, Any], number: int) -> AsyncIterator[int]:
        came: asyncio.Queue[Any] = asyncio.Queue()
        model = request["adapter"] or engine.base_name
        ask = Ask(model, tuple(request["ids"]), request["tokens"], frozenset())
        cancel = engine.submit(ask, lambda given: loop.call_soon_threadsafe(came.put_nowait, given))
        try:
            while not isinstance(given := await came.get(), End):
                yield 1
            if given.reason not in ("length", "cancelled"):
                raise RuntimeError(f"{given.reason}: {given.message}")
        finally:
            cancel()

    return await clients(job, answer)


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    with Memory() as memory:
        located = locate(job["source"])
        device = hardware.device(job["device"])
        base = load.load(located.folder, dtype=hardware.default_dtype(device)[0], device=device)
        engine = Builtin(base, located)
        for adapter in job["adapters"]:
            engine.load(adapter["name"], Path(adapter["folder"]))
        found = asyncio.run(measured(engine, job))
        told = engine.figures()
        engine.close(0.0)
    tell(job, found | {"peak_memory_bytes": memory.peak_bytes, "engine": told})


if __name__ == "__main__":
    main()
