"""Training speed of virtual tokens, ours and peft's, beside our LoRA: one llama of random weights, the same ragged documents,
interleaved.

    python benchmarks/prompt.py                                            medians and ratios into results/prompt.json
    python benchmarks/prompt.py --layers 2 --documents 8 --repeats 2 --no-write      only a try

A round is one optimizer step of each candidate over the same documents: forward, backward, AdamW. Ours goes through the step of a
run (packed rows of 1,024 tokens, virtual ones included); peft's pads batches of `--batch` documents of similar length. Tokens are
the documents' own, without padding and without virtual ones.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import write
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith import hardware
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.documents import Documents, flat
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.models.load import quiet
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.optim import Optimizer

ROW, VOCABULARY = 1024, 4096
Step = Callable[[], float]
CANDIDATES: dict[str, dict[str, Any]] = {
    "lora": {},
    "prompt": {"init": "vocabulary"},
    "ptuning_mlp": {"encoder": "mlp"},
    "ptuning_lstm": {"encoder": "lstm", "hidden": 256},
}


def ours(model: Any, name: str, tokens: int, documents: Documents) -> Step:
    """An optimizer step over all documents, as a run makes it; gives the mean loss."""
    values = CANDIDATES[name] | ({} if name == "lora" else {"tokens": tokens})
    chosen: Any = SETTINGS[name.partition("_")[0]].model_validate(values)
    tuning = method.build(model, chosen, quantized=False, device=model.device)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios=tuning.learning_rate_ratios)
    rows = Plan(documents, documents.tokens, ROW, 0).behind(slots.virtual_ids(model)).rows(0)
    learned = sum(len(row.targets_N) for row in rows)

    def step() -> float:
        total = 0.0
        for row in rows:
            loss = forward.loss(row, 1 / learned)
            loss.backward()
            optimizer.gather()
            total += loss.item()
        optimizer.step(1e-4)
        return total

    return step


def peers(model: Any, name: str, tokens: int, documents: Documents, batch: int) -> Step:
    """The same step with peft around the class, in padded batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model

        common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": tokens}
        if name == "prompt":
            config: Any = PromptTuningConfig(**common)
        else:
            kind, hidden = CANDIDATES[name]["encoder"].upper(), CANDIDATES[name].get("hidden", model.config.hidden_size)
            config = PromptEncoderConfig(**common, encoder_reparameterization_type=kind, encoder_hidden_size=hidden)
        wrapped = get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)
    order = np.argsort(-documents.lengths_D, kind="stable")
    padded = [_padded(documents, order[at : at + batch], model.device) for at in range(0, len(order), batch)]
    learned = int(documents.learned_N.sum())

    def step() -> float:
        total = 0.0
        for ids_BT, mask_BT in padded:
            labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
            labels_BT[:, 0] = -100
            logits_NV = wrapped(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, tokens:-1].flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum") / learned
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _padded(documents: Documents, members: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [torch.from_numpy(documents.ids_N[documents.begin_D[m] : documents.end_D[m]].astype(np.int64)) for m in members]
    mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device), mask_BT.to(device)


def made_documents(count: int) -> Documents:
    """Random tokens, 40 to 200 a document; everything but its first is learned."""
    generator = np.random.default_rng(0)
    lengths_D = generator.integers(40, 200, count)
    ends_D = lengths_D.cumsum().astype(np.int64)
    ids_N = generator.integers(0, VOCABULARY, ends_D[-1]).astype(np.uint32)
    learned_N = np.ones(len(ids_N), bool)
    learned_N[ends_D - lengths_D] = False
    return flat(ids_N, learned_N, ends_D, np.zeros(count, np.uint32), np.arange(1, count + 1), ["made.jsonl"])


def made(hidden: int, layers: int, dtype: str, device: str) -> Any:
    """The same random model for everybody."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 192), max_position_embeddings=2 * ROW,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        model: Any = LlamaForCausalLM(config)
    return model.to(device, getattr(torch, dtype)).requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=576, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=20, help="virtual tokens")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="documents of a batch of peft's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--no-write", action="store_true", help="print, and leave the results file as it is")
    parser.add_argument("--out", default="prompt", help="name of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    documents, shape = made_documents(arguments.documents), (arguments.hidden, arguments.layers, arguments.dtype, arguments.device)
    steps: dict[str, Step] = {name: ours(made(*shape), name, arguments.tokens, documents) for name in CANDIDATES}
    for name in [name for name in CANDIDATES if name != "lora"]:
        steps[f"peft_{name}"] = peers(made(*shape), name, arguments.tokens, documents, arguments.batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(arguments.repeats + 1):
        for name, step in steps.items():  # interleaved, so that a slow moment of the machine meets all of them
            begun = time.perf_counter()
            step()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: documents.tokens / statistics.median(found) for name, found in seconds.items()}
    content = {
        "model": {"hidden": arguments.hidden, "layers": arguments.layers, "dtype": arguments.dtype},
        "virtual_tokens": arguments.tokens,
        "documents": arguments.documents,
        "document_tokens": documents.tokens,
        "peft_batch": arguments.batch,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "over_lora": {name: round(speed[name] / speed["lora"], 3) for name in CANDIDATES if name != "lora"},
        "over_peft": {name: round(speed[name] / speed[f"peft_{name}"], 3) for name in CANDIDATES if name != "lora"},
    }
    print(json.dumps(content, indent=2))
    if not arguments.no_write:
        print(write(arguments.out, content))


if __name__ == "__main__":
    main()
