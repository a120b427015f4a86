"""What compiled blocks cost and save: seconds to compile, and a row's forward and backward pass plain, with our parts, and compiled.

    python benchmarks/compile.py --model builtin:smollm2-135m-instruct --tokens 1024 --rounds 8

Rounds of the three ways are interleaved, so that what else the machine does falls on all of them. The constants of
`tunesmith/step/compiled.py` (SECONDS, SAVED, RATES) come from here.
"""

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.data.corpus.batches import Row
from tunesmith.methods import method
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import load, proof
from tunesmith.models.source import locate
from tunesmith.step import acceleration, compiled, forward


def row_of(tokens: int, vocabulary: int) -> Row:
    """Documents of 128 tokens, half of which are learned."""
    numbers = torch.Generator().manual_seed(0)
    ids_T = torch.randint(0, vocabulary, (tokens,), generator=numbers)
    lengths = tuple([128] * (tokens // 128))
    hidden_N = torch.arange(0, sum(lengths) - 1, 2)
    return Row(ids_T[: sum(lengths)], lengths, tuple(range(len(lengths))), hidden_N, ids_T[hidden_N + 1], sum(lengths), sum(lengths))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model", default="builtin:smollm2-135m-instruct")
    asked.add_argument("--tokens", type=int, default=1024)
    asked.add_argument("--rounds", type=int, default=8)
    asked.add_argument("--device", default="auto")
    given = asked.parse_args()

    device = hardware.device(given.device)
    dtype, _ = hardware.default_dtype(device)
    torch.set_num_threads(hardware.physical_cores())
    base = load.load(locate(given.model).folder, dtype=dtype, device=device)
    tuning = method.build(base.model, LoRA(), quantized=False, device=device)
    method.begin(tuning, Start(base.model, base.tokenizer, 0, lambda path: base.model.get_submodule(path).weight, ""), LoRA())
    method.place(base.model, tuning)
    computed = forward.prepare(base.model, proof.prove(base.model.config, type(base.model), base.own_attention), base.own_attention)
    switch, parts = compiled.place(base.model), acceleration.of_parts(base.model, dtype)
    row = row_of(given.tokens, base.model.get_input_embeddings().weight.shape[0])

    def seconds() -> float:
        begun = time.perf_counter()
        torch.autograd.grad(computed.loss(row), list(tuning.parameters.values()))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def with_parts() -> float:
        for part in parts:
            part.on()
        try:
            return seconds()
        finally:
            for part in parts:
                part.off()

    def with_compiler() -> float:
        switch.on()
        try:
            return seconds()
        finally:
            switch.off()

    with tempfile.TemporaryDirectory() as empty:  # nothing that an earlier run compiled may be found
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        seconds()
        first = with_compiler()
        ways: dict[str, Any] = {"plain": seconds, "parts": with_parts, "compiled": with_compiler}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, way in ways.items():
                found[name].append(way())
    best = {name: statistics.median(times) for name, times in found.items()}
    print(f"compiling {first - best['compiled']:.1f} s, {switch.graphs} graphs, {switch.kinds} kinds of blocks, {dtype} on {device}")
    for name, time_of in best.items():
        print(f"{name:9} {time_of:.3f} s  {given.tokens / time_of:7.0f} tokens/s  {1 - time_of / best['parts']:+.1%} saved against parts")


if __name__ == "__main__":
    main()
