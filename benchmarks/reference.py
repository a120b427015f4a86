"""The plain computation that a loss curve is held against: transformers and peft in float32, one document at a time.

    python reference.py TASK.json OUT.json

It computes again what a contender's record says that it computed: the same documents, step by step. LoRA's first values are drawn,
so it runs once a seed; what the seeds differ by is the noise. An NF4 base is rounded by bitsandbytes and computed in float32.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(task["threads"])
    torch.backends.cuda.matmul.allow_tf32 = False
    Path(sys.argv[2]).write_text(json.dumps([curve(task, seed) for seed in range(task["seeds"])]), encoding="utf-8")


def curve(task: dict[str, Any], seed: int) -> list[float]:
    """The loss of each step of `task["steps"]`, of `task["total_steps"]` that the learning rate falls over."""
    torch.manual_seed(seed)
    model = made(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task["learning_rate"], weight_decay=0.0)
    losses = []
    for number, documents in enumerate(task["steps"]):
        last = number == len(task["steps"]) - 1  # nothing comes after it: its gradient is not needed
        learned = sum(weight(document) for document in documents)
        total = 0.0
        for document in documents:
            with torch.set_grad_enabled(not last):
                loss = loss_of(model, document, task) / learned
            if not last:
                loss.backward()
            total += loss.item()
        losses.append(total)
        if not last:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = task["learning_rate"] * 0.5 * (1 + math.cos(math.pi * number / task["total_steps"]))
            optimizer.step()
            optimizer.zero_grad()
    return losses


def weight(document: dict[str, Any]) -> int:
    return 1 if "label" in document else sum(document["learned"][1:])


def loss_of(model: Any, document: dict[str, Any], task: dict[str, Any]) -> Tensor:
    """The summed loss of one document's learned tokens, or of its label."""
    ids_T = torch.tensor(document["ids"], device=task["device"])
    if "label" in document:
        logits_L = model(input_ids=ids_T[None]).logits[0].float()
        return torch.nn.functional.cross_entropy(logits_L[None], torch.tensor([document["label"]], device=task["device"]), reduction="sum")
    learned_T = torch.tensor(document["learned"][1:], device=task["device"]).bool()
    logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits_TV[learned_T], ids_T[1:][learned_T], reduction="sum")


def made(task: dict[str, Any]) -> Any:
    """The model in float32, and what the case trains of it."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    how: dict[str, Any] = {"dtype": torch.float32, "device_map": None if task["device"] == "cpu" else {"": task["device"]}}
    if task["labels"]:
        model: Any = AutoModelForSequenceClassification.from_pretrained(task["model"], num_labels=len(task["labels"]), **how)
        model.config.pad_token_id = model.config.vocab_size - 1  # only asked for: there are no batches
    else:
        model = AutoModelForCausalLM.from_pretrained(task["model"], **how)
    if task["quantize"]:
        round_to_nf4(model)
    if task["method"] == "full":
        return model.train()
    from peft import LoraConfig, get_peft_model

    kind = "SEQ_CLS" if task["labels"] else "CAUSAL_LM"
    dora = task["method"] == "dora"
    config = LoraConfig(r=task["rank"], lora_alpha=task["alpha"], target_modules="all-linear", use_dora=dora, task_type=kind)
    return get_peft_model(model, config).train()


@torch.no_grad()
def round_to_nf4(model: Any) -> None:
    """Every linear layer but the head, to NF4 and back."""
    from bitsandbytes import functional

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            codes, state = functional.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.copy_(functional.dequantize_4bit(codes, state))


if __name__ == "__main__":
    main()
