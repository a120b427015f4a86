"""Attention of one layer over a packed row, forward and backward: per document as a call each, as the run computes it, and with what
the documents share standing once.

    python benchmarks/attention.py [--heads 9 --kept 3 --size 64] [--threads 2] [--rounds 9] [--out FILE]

Rows are of equal computed work only within a case: `each` calls torch's operator document by document, `row` is the run's own
function, `shared` is the same documents behind one beginning that stands once (`each` and `row` repeat it). Times are medians in
milliseconds of interleaved rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.models.forest import Forest, forest_of
from tunesmith.models.forest_attention import attend

# name: (tokens of the beginning, tokens of each document behind it)
CASES: dict[str, tuple[int, tuple[int, ...]]] = {
    "1 of 1,000": (0, (1000,)),
    "10 of 100": (0, (100,) * 10),
    "62 of 16": (0, (16,) * 62),
    "short texts of 10 to 60": (0, tuple(10 + 7 * i % 51 for i in range(30))),
    "10 of 100 behind 500": (500, (100,) * 10),
    "30 of 30 behind 100": (100, (30,) * 30),
}


def drawn(tokens: int, heads: int, kept: int, size: int) -> list[Tensor]:
    """Queries, keys and values [rows, T, E], laid out as a class lays them out."""
    return [torch.randn(tokens, rows, size).transpose(0, 1).requires_grad_() for rows in (heads, kept, kept)]


def each(q_HTE: Tensor, k_KTE: Tensor, v_KTE: Tensor, forest: Forest) -> Tensor:
    """[T, H, E], a call for each document."""
    grouped, outs = q_HTE.shape[0] != k_KTE.shape[0], []
    for begin, end in forest.segments:
        q, k, v = (part[None, :, begin:end] for part in (q_HTE, k_KTE, v_KTE))
        outs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)[0].transpose(0, 1))
    return torch.cat(outs)


def ways(beginning: int, documents: tuple[int, ...], heads: int, kept: int, size: int) -> dict[str, Callable[[], None]]:
    """What is compared: one forward and backward pass each. A row's forest is made anew, as it is for each row of a run."""
    alone, scale = tuple(beginning + length for length in documents), size**-0.5

    def passed(lengths: tuple[int, ...], parents: tuple[int, ...], own: bool) -> Callable[[], None]:
        given = drawn(sum(lengths), heads, kept, size)
        direction = torch.randn(sum(lengths), heads, size)

        def run() -> None:
            forest = forest_of(lengths, parents)
            out = attend(given[0], given[1], given[2], forest, [], scale) if own else each(given[0], given[1], given[2], forest)
            torch.autograd.grad(out, given, direction)

        return run

    found = {"each": passed(alone, (), False), "row": passed(alone, (), True)}
    if beginning:
        found["shared"] = passed((beginning, *documents), (-1, *(0 for _ in documents)), True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("heads", 9), ("kept", 3), ("size", 64), ("threads", 2), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    results: dict[str, dict[str, float]] = {}
    for case, (beginning, documents) in CASES.items():
        compared = ways(beginning, documents, asked.heads, asked.kept, asked.size)
        times: dict[str, list[float]] = {name: [] for name in compared}
        for number in range(asked.rounds + 1):
            for name, run in compared.items():
                begun = time.perf_counter()
                run()
                if number:  # the first is warm-up
                    times[name].append((time.perf_counter() - begun) * 1e3)
        results[case] = {name: round(statistics.median(found), 3) for name, found in times.items()}
        print(case, results[case], flush=True)
    if asked.out:
        asked.out.write_text(json.dumps({"settings": vars(asked) | {"out": str(asked.out)}, "milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
