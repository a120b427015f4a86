"""`transformers`' own generate under the same requests: one at a time, or in batches of as many as there are clients.

It keeps a batch together until its longest answer is there; tokens beyond an answer's own length are not counted.
"""

import time
from typing import Any

import torch
from serve_load import Memory, Watch, numbered, read_job, tell
from transformers import AutoModelForCausalLM


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    with Memory() as memory:
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).to(job["device"]).eval()
        requests = numbered(job)
        generate(model, [{**request, "tokens": 4} for request in job["requests"][-job["batch"] :]], Watch(60.0))
        watch = Watch(job["seconds"])
        while not watch.over:
            generate(model, [next(requests)[1] for _ in range(job["batch"])], watch)
            watch.answers += job["batch"]
        found = watch.figures()
    tell(job, found | {"peak_memory_bytes": memory.peak_bytes})


@torch.inference_mode()
def generate(model: Any, requests: list[dict[str, Any]], watch: Watch) -> None:
    longest = max(len(request["ids"]) for request in requests)
    ids_BT = torch.zeros(len(requests), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, request in enumerate(requests):
        ids_BT[row, longest - len(request["ids"]) :] = torch.tensor(request["ids"])
        mask_BT[row, longest - len(request["ids"]) :] = 1
    count = max(request["tokens"] for request in requests)
    came = [(request["tokens"], watch.answer(request)) for request in requests]

    step = 0

    def told(ids: torch.Tensor, scores: Any, **named: Any) -> torch.Tensor:  # called behind every step
        nonlocal step
        step += 1
        for tokens, came_one in came:
            if step <= tokens:
                came_one(1)
        return torch.full((ids.shape[0],), time.perf_counter() >= watch.end, dtype=torch.bool, device=ids.device)

    given: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    model.generate(ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), stopping_criteria=[told], **given)


if __name__ == "__main__":
    main()
