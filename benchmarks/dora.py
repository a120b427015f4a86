"""Training speed of DoRA beside LoRA, ours and peft's: one llama of random weights, the same rows, the same loss, interleaved.

    python benchmarks/dora.py                                         medians and ratios into results/dora.json
    python benchmarks/dora.py --layers 2 --rows 1 --repeats 2 --no-write      only a try

A round is one optimizer step of each candidate over the same tokens, every one of them learned: forward, backward, AdamW. Ours goes
through the step of a run (packed rows of 1,024 tokens, our head and loss), peft's through the class, in batches of `--batch`
documents that need no padding. With documents of 1,024 tokens both compute the same rows and the method alone is compared;
`--document 128` is nearer to rows of instructions, where peft pays for its dense product of A and B with every small batch.
`--dtype bfloat16` and `--nf4` measure the other bases (peft's over bitsandbytes' Linear4bit).
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import write
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tunesmith import hardware
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.documents import Documents, flat
from tunesmith.methods import dora, lora, method
from tunesmith.methods.settings import DoRA, LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import nf4, slots
from tunesmith.models.load import quiet
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.optim import Optimizer

ROW, VOCABULARY = 1024, 4096
Step = Callable[[], float]


def ours(model: Any, name: str, rank: int, documents: Documents) -> Step:
    """An optimizer step over all documents, as a run makes it; gives the mean loss."""
    module, settings = {"lora": (lora, LoRA), "dora": (dora, DoRA)}[name]
    chosen = settings(rank=rank)
    tuning = module.build(model, chosen)
    module.init(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    tuning.train()
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios={})
    rows = Plan(documents, documents.tokens, ROW, 0).rows(0)
    learned = sum(len(row.targets_N) for row in rows)

    def step() -> float:
        total = 0.0
        for row in rows:
            loss = forward.loss(row, 1 / learned)
            loss.backward()
            total += loss.item()
        optimizer.step(1e-4)
        return total

    return step


def peers(model: Any, name: str, rank: int, documents: Documents, batch: int) -> Step:
    """The same step with peft around the class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=name == "dora")
        wrapped = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)
    ids_DT = torch.from_numpy(documents.ids_N.astype(np.int64)).view(len(documents.lengths_D), -1).to(model.device)
    learned = ids_DT[:, 1:].numel()

    def step() -> float:
        total = 0.0
        for ids_BT in ids_DT.split(batch):
            logits_NV = wrapped(input_ids=ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits_NV, ids_BT[:, 1:].flatten(), reduction="sum") / learned
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def made_documents(count: int, length: int) -> Documents:
    """Random tokens; everything but a document's first is learned."""
    generator = np.random.default_rng(0)
    ids_N = generator.integers(0, VOCABULARY, count * length).astype(np.uint32)
    learned_N = np.tile(np.arange(length) > 0, count)
    ends_D = np.arange(1, count + 1, dtype=np.int64) * length
    return flat(ids_N, learned_N, ends_D, np.zeros(count, np.uint32), np.arange(1, count + 1), ["made.jsonl"])


def made(arguments: argparse.Namespace, folder: Path, ours: bool) -> Any:
    """The same random model for everybody, in the base's dtype or as NF4."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=max(1, arguments.hidden // 64 // 3),
        max_position_embeddings=ROW,
    )
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    with quiet():
        if not (folder / "config.json").exists():
            LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        if not arguments.nf4:
            model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        elif ours:
            paths = tuple(place.path for place in slots.linears(LlamaForCausalLM(config)))
            model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=nf4.Nf4Config(paths))
        else:
            four_bits = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
            )
            model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=four_bits)
    return model.to(arguments.device).requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=576, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2, help="rows of 1,024 tokens in an optimizer step")
    parser.add_argument("--document", type=int, default=ROW, help="tokens of a document, a divisor of 1,024")
    parser.add_argument("--batch", type=int, default=1, help="documents of a batch of peft's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--no-write", action="store_true", help="print, and leave the results file as it is")
    parser.add_argument("--out", default="dora", help="name of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    documents = made_documents(arguments.rows * ROW // arguments.document, arguments.document)
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Step] = {}
        for name in ("lora", "dora"):
            steps[name] = ours(made(arguments, Path(folder), True), name, arguments.rank, documents)
            steps[f"peft_{name}"] = peers(made(arguments, Path(folder), False), name, arguments.rank, documents, arguments.batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.repeats + 1):
        for name, step in steps.items():  # interleaved, so that a slow moment of the machine meets all of them
            begun = time.perf_counter()
            losses[name].append(step())
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: documents.tokens / statistics.median(found) for name, found in seconds.items()}
    content = {
        "model": {"hidden": arguments.hidden, "layers": arguments.layers, "dtype": arguments.dtype, "nf4": arguments.nf4},
        "rank": arguments.rank,
        "rows": arguments.rows,
        "row_tokens": ROW,
        "document_tokens": arguments.document,
        "peft_batch": arguments.batch,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "dora_over_lora": round(speed["dora"] / speed["lora"], 3),
        "dora_over_peft_dora": round(speed["dora"] / speed["peft_dora"], 3),
        "lora_over_peft_lora": round(speed["lora"] / speed["peft_lora"], 3),
        "first_losses": {name: round(found[0], 4) for name, found in losses.items()},
    }
    print(json.dumps(content, indent=2))
    if not arguments.no_write:
        print(write(arguments.out, content))


if __name__ == "__main__":
    main()
