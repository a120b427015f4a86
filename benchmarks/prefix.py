"""Prefix tuning: tokens a second of a step's forward and backward, ours packed, peft's in padded batches, our LoRA beside them.

    python benchmarks/prefix.py                                  three rounds, medians into results/prefix.json
    python benchmarks/prefix.py --documents 8 --rounds 1 --out try

One process, one base after the other, the same documents for everyone (drawn ids; lengths as instruction data has them, half of
the tokens learned); contenders take turns, in another order each round. peft keeps the prefix in a cache, a copy for each document of a
batch, so it cannot pack: it gets batches of 4, longest with longest. Useful tokens are the documents' own.

A second table is of the attention alone, at one layer's shape: queries of a packed row over the prefix once, merged with each
document's own (ours), against one call a document with a copy of the prefix in front.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from measure import MODEL, write

from tunesmith import hardware
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.documents import Documents, flat
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import load, slots
from tunesmith.models.prefix_attention import behind_prefix
from tunesmith.models.proof import prove
from tunesmith.models.source import locate
from tunesmith.step.forward import prepare

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PrefixTuningConfig, get_peft_model

OURS = {
    "lora": ("lora", {}),
    "prefix-none": ("ptuning_v2", {}),
    "prefix-mlp": ("prefix", {}),
    "prefix-lstm": ("prefix", {"encoder": "lstm"}),
}
PEFT = {"peft-prefix-none": False, "peft-prefix-mlp": True}
BATCH = 4  # documents of peft's batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=20, help="positions of the prefix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--only", default=",".join([*OURS, *PEFT]))
    parser.add_argument("--out", default="prefix", help="name of the results file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype, _ = hardware.default_dtype(hardware.device("cpu"))
    base = load.load(locate(MODEL).folder, dtype=dtype)
    documents = drawn(arguments.documents, base.model.get_input_embeddings().weight.shape[0])
    names = arguments.only.split(",")

    rounds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, arguments.rounds):  # the first is to warm up
        for name in names[number % len(names) :] + names[: number % len(names)]:
            contender = ours if name in OURS else theirs
            seconds = contender(name, base, documents, arguments.tokens)
            if number >= 0:
                rounds[name].append(documents.tokens / seconds)
                print(f"round {number + 1}/{arguments.rounds} {name}: {rounds[name][-1]:.0f} tokens/s", flush=True)
    found = {name: {"tokens_per_second": statistics.median(each), "rounds": each} for name, each in rounds.items()}
    content = {
        "documents": len(documents),
        "tokens": documents.tokens,
        "prefix_tokens": arguments.tokens,
        "threads": arguments.threads,
        "dtype": str(dtype).removeprefix("torch."),
        "training": found,
        "attention": attention(base.model.config, documents, arguments.tokens, dtype, arguments.rounds),
    }
    print(write(arguments.out, content))


def drawn(count: int, vocabulary: int) -> Documents:
    """Documents of about 110 tokens, from 16 to 512, as instruction data has them."""
    generator = np.random.default_rng(0)
    lengths_D = np.clip(generator.lognormal(4.5, 0.7, count), 16, 512).astype(np.int64)
    end_D = lengths_D.cumsum()
    learned_N = np.concatenate([np.arange(length) >= length // 2 for length in lengths_D])
    ids_N = generator.integers(100, vocabulary, int(end_D[-1])).astype(np.uint32)
    return flat(ids_N, learned_N, end_D, np.zeros(count, np.uint32), np.arange(count), ["drawn"])


def ours(name: str, base: Any, documents: Documents, tokens: int) -> float:
    """Seconds of forward and backward over all documents, packed to rows of 1,024."""
    kind, chosen = OURS[name]
    settings = SETTINGS[kind].model_validate(chosen | ({"tokens": tokens} if "tokens" in SETTINGS[kind].model_fields else {}))
    tuning = method.build(base.model, settings, quantized=False)
    method.begin(tuning, Start(base.model, base.tokenizer, 0, lambda path: torch.empty(0)), settings)
    method.place(base.model, tuning)
    proof = prove(base.model.config, type(base.model), base.own_attention, prefix=bool(tuning.prefix_tokens))
    forward = prepare(base.model, proof, base.own_attention)
    rows = Plan(documents, documents.tokens, 1024, 0).rows(0)
    begun = time.perf_counter()
    for row in rows:
        forward.loss(row, 1 / documents.tokens).backward()
    seconds = time.perf_counter() - begun
    slots.lift(base.model, tuning.adapter)
    base.model.set_attn_implementation(base.own_attention)
    return seconds


def theirs(name: str, base: Any, documents: Documents, tokens: int) -> float:
    """The same through peft, over the same weights."""
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, prefix_projection=PEFT[name])
    model: Any = get_peft_model(base.model, config)
    order = np.argsort(-documents.lengths_D)
    begun = time.perf_counter()
    for first in range(0, len(order), BATCH):
        members = order[first : first + BATCH]
        longest = int(documents.lengths_D[members].max())
        ids_BT, mask_BT = torch.zeros(len(members), longest, dtype=torch.long), torch.zeros(len(members), longest, dtype=torch.long)
        labels_BT = torch.full_like(ids_BT, -100)
        for row, member in enumerate(members):
            part = slice(int(documents.begin_D[member]), int(documents.end_D[member]))
            ids_L = torch.from_numpy(documents.ids_N[part].astype(np.int64))
            ids_BT[row, : len(ids_L)], mask_BT[row, : len(ids_L)] = ids_L, 1
            labels_BT[row, : len(ids_L)] = torch.where(torch.from_numpy(documents.learned_N[part].copy()), ids_L, -100)
        model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss.backward()
    return time.perf_counter() - begun


def attention(config: Any, documents: Documents, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Milliseconds of one layer's attention over one packed row, forward and backward, for two lengths of the prefix."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = Plan(documents, documents.tokens, 1024, 0).rows(0)[0].lengths
    starts = [0, *np.cumsum(lengths).tolist()]
    result: dict[str, Any] = {"documents_in_row": len(lengths), "row_tokens": starts[-1]}
    for length in (tokens, 10 * tokens):
        shapes = [(config.num_attention_heads, starts[-1]), *[(config.num_key_value_heads, n) for n in (starts[-1],) * 2 + (length,) * 2]]
        tensors = [torch.randn(rows, n, size).to(dtype).requires_grad_() for rows, n in shapes]
        result[f"prefix_{length}"] = {
            name: 1000 * measured(call, tensors, rounds)
            for name, call in (
                ("merged_ms", lambda q, k, v, *front: behind_prefix(q, k, v, front[0], front[1], starts, size**-0.5)),
                ("copied_ms", lambda q, k, v, *front: copied(q, k, v, front[0], front[1], starts, size**-0.5)),
            )
        }
    return result


def copied(q: Any, k: Any, v: Any, prefix_k: Any, prefix_v: Any, starts: list[int], scale: float) -> torch.Tensor:
    """A document at a time, with a copy of the prefix, by the library's own attention and a mask that lets every token see it."""
    outs = []
    for begin, end in pairwise(starts):
        keys, values = torch.cat([prefix_k, k[:, begin:end]], 1), torch.cat([prefix_v, v[:, begin:end]], 1)
        seen = torch.ones(end - begin, keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - (end - begin))
        own = torch.nn.functional.scaled_dot_product_attention
        outs.append(own(q[None, :, begin:end], keys[None], values[None], attn_mask=seen, scale=scale, enable_gqa=True)[0])
    return torch.cat(outs, 1)


def measured(call: Callable[..., torch.Tensor], tensors: list[torch.Tensor], rounds: int) -> float:
    """Median seconds of forward and backward."""
    found = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        call(*tensors).sum().backward()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
