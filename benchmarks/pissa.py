"""PiSSA and LoftQ on the built-in model: what 4 bits lose of its matrices, and how fast the loss falls at first.

    python benchmarks/pissa.py                                    every block and role, 20 steps each, into results/pissa.json
    python benchmarks/pissa.py --blocks 3 --steps 2 --out try     only a try

`lost` is the relative Frobenius error of what stands for a matrix against the checkpoint's, the mean over blocks:

    nf4       nf4(W)                              what QLoRA trains over
    qpissa    nf4(W - B·A) + B·A                  B·A the leading part of W
    loftq-N   nf4(W - B·A) + B·A                  B·A from N iterations of LoftQ
    paper-N   nf4(W - B'·A') + B·A                the same without the last rounding, as the paper leaves it

`losses` are those of the first steps of each method at each rate, on the same rows in the same order: lora and pissa over the base's
own weights, qlora, qpissa and loftq over NF4.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import torch
from measure import MODEL, fresh, run, tunesmith, write
from torch import Tensor

from tunesmith import events, hardware
from tunesmith.methods.parts.decompose import leading, loftq
from tunesmith.models import load, nf4, slots
from tunesmith.models.matrix import matrix
from tunesmith.models.source import locate

RUNS = {
    "lora": ["--method", "lora"],
    "pissa": ["--method", "pissa"],
    "qlora": ["--method", "qlora"],
    "qpissa": ["--method", "pissa", "model.quantize=nf4"],
    "loftq": ["--method", "qlora", "method.init=loftq"],
}


def rounded(weight_OI: Tensor) -> Tensor:
    return nf4.rounded(weight_OI, True, torch.float32)


def pissa(weight_OI: Tensor, rank: int) -> Tensor:
    b_OR, a_RI = leading(weight_OI, rank, 4, seed=0)
    return rounded(weight_OI - b_OR @ a_RI) + b_OR @ a_RI


def loftq_of(iterations: int, once_more: bool) -> Callable[[Tensor, int], Tensor]:
    def stands_for(weight_OI: Tensor, rank: int) -> Tensor:
        b_OR, a_RI = loftq(weight_OI, rank, rounded, iterations, seed=0)
        before_OI = b_OR @ a_RI
        if not once_more:
            before_OI = torch.zeros_like(weight_OI)
            if iterations > 1:
                before_b, before_a = loftq(weight_OI, rank, rounded, iterations - 1, seed=0)
                before_OI = before_b @ before_a
        return rounded(weight_OI - before_OI) + b_OR @ a_RI

    return stands_for


STANDS_FOR: dict[str, Callable[[Tensor, int], Tensor]] = {
    "nf4": lambda weight_OI, rank: rounded(weight_OI),
    "qpissa": pissa,
    "loftq-1": loftq_of(1, True),
    "loftq-5": loftq_of(5, True),
    "paper-1": loftq_of(1, False),
    "paper-5": loftq_of(5, False),
}


def lost(rank: int, every: int) -> dict[str, dict[str, float]]:
    """{role: {way: mean relative error}}, of each `every`-th block."""
    folder = locate(MODEL).folder
    skeleton = load.skeleton(load.load_config(folder))
    roles = slots.family(skeleton) or {}
    found: dict[str, dict[str, list[float]]] = {}
    for place in slots.linears(skeleton):
        role = next(role for role, ending in roles.items() if place.path.endswith(ending))
        if int(re.findall(r"\d+", place.path)[0]) % every:
            continue
        weight_OI = matrix(folder, place.path, skeleton)
        for name, stands_for in STANDS_FOR.items():
            error = ((weight_OI - stands_for(weight_OI, rank)).norm() / weight_OI.norm()).item()
            found.setdefault(role, {}).setdefault(name, []).append(error)
    return {role: {name: sum(errors) / len(errors) for name, errors in ways.items()} for role, ways in found.items()}


def losses(rank: int, steps: int, rates: list[str], threads: int) -> dict[str, dict[str, list[float]]]:
    """{method: {rate: loss of each step}}."""
    work, found = fresh("pissa"), {}
    for name, words in RUNS.items():
        for rate in rates:
            out = f"{name}-{rate}"
            settings = [f"method.rank={rank}", f"train.learning_rate={rate}", f"train.steps={steps}", f"train.threads={threads}"]
            budget = ["train.tokens_per_step=1024", "train.row_tokens=1024", "train.schedule=constant", "train.warmup=0.0"]
            command = tunesmith("train", "--model", MODEL, "--data", "builtin:tickets", *words, *settings, *budget, "--out", out)
            run(command, cwd=work, threads=threads, log=work / f"{out}.log")
            happened = events.read_events(work / out / "events.jsonl")
            found.setdefault(name, {})[rate] = [event.loss for event in happened if isinstance(event, events.Step)]
            print(f"{name} at {rate}: {found[name][rate][0]:.3f} -> {found[name][rate][-1]:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=1, metavar="N", help="only each N-th block's matrices")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rates", default="1e-4,3e-4,1e-3", help="learning rates of the first steps")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="pissa", help="name of the results file")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    content: dict[str, Any] = {"rank": arguments.rank, "lost": lost(arguments.rank, arguments.blocks)}
    for role, ways in content["lost"].items():
        print(f"{role:5}", "  ".join(f"{name} {error:.4f}" for name, error in ways.items()), flush=True)
    if arguments.steps:
        content["losses"] = losses(arguments.rank, arguments.steps, arguments.rates.split(","), arguments.threads)
    print(write(arguments.out, content))


if __name__ == "__main__":
    main()
