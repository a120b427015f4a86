"""What this machine's matrix products do at a model's own shapes: the wall that a case's speed is shown against.

    python benchmarks/roofline.py MODEL_FOLDER --dtype float32 --rows 1024 --threads 2

Each linear layer's product is measured in every direction that training needs: forward (x·Wᵀ), back to the input (dy·W), and for
full tuning to the weight (dyᵀ·x). The rate is all FLOP over all seconds, shapes counted as often as the model has them. The best of
several runs of each: a busy moment only ever makes a product slower.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

DIRECTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "forward": lambda x_TI, w_OI, dy_TO: x_TI @ w_OI.T,
    "input": lambda x_TI, w_OI, dy_TO: dy_TO @ w_OI,
    "weight": lambda x_TI, w_OI, dy_TO: dy_TO.T @ x_TI,
}
FROZEN, TRAINED = ("forward", "input"), ("forward", "input", "weight")


def shapes(folder: Path) -> Counter[tuple[int, int]]:
    """{(out, in): how many} of the model's linear layers, its head once."""
    from tunesmith.models import load, slots

    skeleton = load.skeleton(load.load_config(folder))
    found = Counter((place.out_features, place.in_features) for place in slots.linears(skeleton))
    found[tuple(skeleton.get_output_embeddings().weight.shape)] += 1
    return found


def measured(found: Counter[tuple[int, int]], rows: int, dtype: torch.dtype, device: torch.device, seconds: float) -> dict[str, float]:
    """{direction: FLOP/s} over all shapes; each shape and direction gets its share of `seconds`."""
    spent, flops = dict.fromkeys(DIRECTIONS, 0.0), dict.fromkeys(DIRECTIONS, 0.0)
    for (o, i), count in found.items():
        x_TI, w_OI, dy_TO = (torch.randn(size, device=device, dtype=dtype) for size in ((rows, i), (o, i), (rows, o)))
        for name, product in DIRECTIONS.items():
            call = partial(product, x_TI, w_OI, dy_TO)
            spent[name] += count * best(call, device, seconds / len(found) / len(DIRECTIONS))
            flops[name] += count * 2.0 * rows * o * i
    return {name: flops[name] / spent[name] for name in DIRECTIONS}


def best(call: Callable[[], Tensor], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call, of at least three."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times: list[float] = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        call()
        while len(times) < 3 or time.perf_counter() < end:
            wait()
            begun = time.perf_counter()
            call()
            wait()
            times.append(time.perf_counter() - begun)
    return min(times)


def rate(directions: dict[str, float], full: bool) -> float:
    """FLOP/s of the products of a step, each direction having as much to do as the others."""
    names = TRAINED if full else FROZEN
    return len(names) / sum(1 / directions[name] for name in names)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0)
    arguments = parser.parse_args(words)
    torch.set_num_threads(arguments.threads)
    dtype, device = getattr(torch, arguments.dtype), torch.device(arguments.device)
    print(json.dumps(measured(shapes(arguments.folder), arguments.rows, dtype, device, arguments.seconds)))


if __name__ == "__main__":
    main()
