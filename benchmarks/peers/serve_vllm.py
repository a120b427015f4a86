"""vLLM's engine under the load of `serve_load.py`; run by the Python of an environment that has it."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from serve_load import Memory, clients, read_job, tell


async def measured(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    loras = {each["name"]: LoRARequest(each["name"], number + 1, each["folder"]) for number, each in enumerate(job["adapters"])}

    async def answer(request: dict[str, Any], number: int) -> AsyncIterator[int]:
        settings = SamplingParams(
            temperature=0.0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        prompt: Any = {"prompt_token_ids": request["ids"]}
        async for given in engine.generate(prompt, settings, str(number), lora_request=loras.get(request["adapter"])):
            yield len(given.outputs[0].token_ids)

    return await clients(job, answer)


async def main() -> None:
    job = read_job()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    from vllm import AsyncEngineArgs, __version__
    from vllm.v1.engine.async_llm import AsyncLLM

    loras: dict[str, Any] = {}
    if job["adapters"]:
        loras = {"enable_lora": True, "max_loras": len(job["adapters"]), "max_lora_rank": max(8, job["rank"])}
    with Memory() as memory:
        settings = AsyncEngineArgs(
            model=job["model"], dtype=job["dtype"], max_model_len=2048, max_num_seqs=32, skip_tokenizer_init=True, **loras
        )
        engine = AsyncLLM.from_engine_args(settings)
        try:
            found = await measured(engine, job)
        finally:
            engine.shutdown()
    tell(job, found | {"peak_memory_bytes": memory.peak_bytes, "vllm": __version__})


if __name__ == "__main__":
    asyncio.run(main())
