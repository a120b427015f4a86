"""One optimizer step of each method, ours and peft's, over one llama of random weights and the same documents, interleaved.

    python benchmarks/method_steps.py                                          medians and ratios into results/method_steps.json
    python benchmarks/method_steps.py --only lora,dora --layers 2 --documents 8 --repeats 2 --no-write      only a try

A step is forward, backward and AdamW. Ours goes through the step of a run: packed rows, our head and loss. peft's goes through the
class in padded batches of `--batch` documents, longest with longest; a batch of 1 pads nothing. Tokens are the documents' own,
without padding and without virtual ones. `--dtype bfloat16` and `--nf4` measure the other bases (peft's over bitsandbytes).
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
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tunesmith import hardware
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.batches import flat as with_those_behind
from tunesmith.data.corpus.documents import Documents, flat
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import nf4, slots
from tunesmith.models.load import quiet
from tunesmith.models.proof import prove
from tunesmith.step.forward import prepare
from tunesmith.step.optim import Optimizer

ROW, VOCABULARY = 1024, 4096
Step = Callable[[], float]
# name -> our method and its settings, peft's configuration and its values
CANDIDATES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "lora": ("lora", {}, "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
    "dora": ("dora", {}, "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "use_dora": True}),
    "prompt": ("prompt", {"init": "vocabulary", "tokens": 20}, "PromptTuningConfig", {"num_virtual_tokens": 20}),
    "ptuning": (
        "ptuning", {"encoder": "mlp", "tokens": 20},
        "PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_reparameterization_type": "MLP"},
    ),
    "prefix": ("prefix", {"tokens": 20}, "PrefixTuningConfig", {"num_virtual_tokens": 20, "prefix_projection": True}),
    "ptuning_v2": ("ptuning_v2", {"tokens": 20}, "PrefixTuningConfig", {"num_virtual_tokens": 20}),
}  # fmt: skip


def ours(model: Any, name: str, documents: Documents) -> Step:
    """An optimizer step over all documents, as a run makes it; gives the mean loss."""
    kind, values, _, _ = CANDIDATES[name]
    chosen: Any = SETTINGS[kind].model_validate(values)
    tuning = method.build(model, chosen, quantized=False, device=model.device)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    tuning.train()
    proof = prove(model.config, type(model), "sdpa", prefix=bool(slots.prefix(model)))
    forward = prepare(model, proof, "sdpa")
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios=tuning.learning_rate_ratios)
    rows = Plan(documents, documents.tokens, ROW, 0).behind(slots.virtual_ids(model)).shared(proof.shared).rows(0)
    learned = sum(len(row.targets_N) for row in with_those_behind(rows))

    def step() -> float:
        total = 0.0
        for row in rows:
            total += forward.learn(row, 1 / learned, None, optimizer.gather).item()
        optimizer.step(1e-4)
        return total

    return step


def peers(model: Any, name: str, documents: Documents, batch: int) -> Step:
    """The same step with peft around the class, in padded batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        _, _, kind, values = CANDIDATES[name]
        wrapped = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **values)).train()
    front = values.get("num_virtual_tokens", 0) if kind in ("PromptTuningConfig", "PromptEncoderConfig") else 0
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)
    order = np.argsort(-documents.lengths_D, kind="stable")
    batches = [padded(documents, order[at : at + batch], model.device) for at in range(0, len(order), batch)]
    learned = int(documents.learned_N.sum())

    def step() -> float:
        total = 0.0
        for ids_BT, mask_BT in batches:
            labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
            logits_NV = wrapped(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, front:-1].flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum") / learned
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def padded(documents: Documents, members: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = [torch.from_numpy(documents.ids_N[documents.begin_D[m] : documents.end_D[m]].astype(np.int64)) for m in members]
    mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in ids], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(device), mask_BT.to(device)


def drawn(count: int) -> Documents:
    """Documents of about 110 tokens, from 16 to 512, as instruction data has them; everything but a document's first is learned."""
    generator = np.random.default_rng(0)
    lengths_D = np.clip(generator.lognormal(4.5, 0.7, count), 16, 512).astype(np.int64)
    ends_D = lengths_D.cumsum()
    learned_N = np.ones(int(ends_D[-1]), bool)
    learned_N[ends_D - lengths_D] = False
    ids_N = generator.integers(0, VOCABULARY, int(ends_D[-1])).astype(np.uint32)
    return flat(ids_N, learned_N, ends_D, np.zeros(count, np.uint32), np.arange(1, count + 1), ["drawn"])


def made(arguments: argparse.Namespace, folder: Path, ours: bool) -> Any:
    """The same random model for everybody, in the base's number format or as NF4."""
    hidden = arguments.hidden
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64, num_hidden_layers=arguments.layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 192), max_position_embeddings=2 * ROW,
    )  # fmt: skip
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    with quiet():
        if not (folder / "config.json").exists():
            LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
        more: dict[str, Any] = {}
        if arguments.nf4 and ours:
            more["quantization_config"] = nf4.Nf4Config(tuple(place.path for place in slots.linears(LlamaForCausalLM(config))))
        elif arguments.nf4:
            more["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
            )
        model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, **more)
    return model.to(arguments.device).requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CANDIDATES), help="%(default)s")
    parser.add_argument("--hidden", type=int, default=576, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4, help="documents of a batch of peft's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--no-write", action="store_true", help="print, and leave the results file as it is")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    documents, steps = drawn(arguments.documents), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only.split(","):
            steps[name] = ours(made(arguments, Path(folder), True), name, documents)
            steps[f"peft {name}"] = peers(made(arguments, Path(folder), False), name, documents, arguments.batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for number in range(arguments.repeats + 1):
        for name, step in steps.items():  # interleaved, so that a slow moment of the machine meets all of them
            begun = time.perf_counter()
            loss = step()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            losses.setdefault(name, round(loss, 4))
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: documents.tokens / statistics.median(found) for name, found in seconds.items()}
    asked = {key: value for key, value in vars(arguments).items() if key not in ("no_write", "only", "device")}
    content = asked | {
        "tokens": documents.tokens,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "ours_over_peft": {name: round(speed[name] / speed[f"peft {name}"], 3) for name in arguments.only.split(",")},
        "first_losses": losses,
    }
    print(json.dumps(content, indent=2))
    if not arguments.no_write:
        print(write("method_steps", content))


if __name__ == "__main__":
    main()
