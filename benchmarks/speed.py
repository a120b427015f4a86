"""Training speed and peak memory: SmolLM2-135M-Instruct, every method at its default size, the first 64 rows of an alpaca file.

    python benchmarks/speed.py --data alpaca_en_demo.json            three runs, medians into results/speed.json
    python benchmarks/speed.py --data alpaca_en_demo.json --methods lora,dora,pissa --out methods      other methods, beside LoRA
    python benchmarks/speed.py --data alpaca_en_demo.json --rows 4 --repeats 1 --out try      only a try

The share of the matmul rate compares the runs with this machine's own matrix products at the model's shapes, measured at the
start of each and the best of them taken: it is the figure that says how much is left to gain, whatever the machine.
"""

import argparse
from pathlib import Path

from measure import MODEL, figures, first_rows, fresh, medians, run, tunesmith, write

from tunesmith import hardware
from tunesmith.methods.settings import SETTINGS

# what is run -> words of the command
METHODS = {name: ["--method", name] for name in SETTINGS} | {"qlora": ["--method", "qlora"]}
METHODS |= {f"q{name}": ["--method", name, "model.quantize=nf4"] for name in ("dora", "pissa")}
METHODS |= {f"adapter {variant}": ["--method", "adapter", f"method.variant={variant}"] for variant in ("houlsby", "parallel")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a JSON list with instruction, input, output")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default="lora,qlora", help=f"%(default)s; all, or some of {','.join(METHODS)}")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="speed", help="name of the results file")
    arguments = parser.parse_args()

    work, names = fresh("speed"), list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    rows = first_rows(arguments.data, arguments.rows, work / "rows.json")
    settings = [
        f"train.tokens_per_step={max(512, rows * 55)}",  # about 4 steps of 16 rows, as trainers take 4 times 4
        "train.epochs=1",
        f"train.threads={arguments.threads}",
    ]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    commands = {}
    for number in range(arguments.repeats):
        for name in names:  # interleaved, so that a slow minute of the machine meets all of them
            words = ["train", "--model", MODEL, "--data", "rows.json", *METHODS[name], *settings, "--out", f"{name}-{number}"]
            commands[name] = " ".join(["tunesmith", *words])
            measured = run(tunesmith(*words), cwd=work, threads=arguments.threads, log=work / f"{name}-{number}.log")
            found = figures(work / f"{name}-{number}")
            rounds[name].append(found | {"process_seconds": measured.seconds, "process_peak_bytes": measured.peak_memory_bytes})
            print(f"{name} {number + 1}/{arguments.repeats}: {found['tokens_per_second']:.0f} tokens/s", flush=True)
    # one measurement takes a fraction of a second, and a busy moment only ever lowers it: the best of all runs is the machine's rate
    best = max(each["matmul_flops"] for found in rounds.values() for each in found)
    for each in (each for found in rounds.values() for each in found):
        each["share_of_matmul_rate"] = each["training_flops"] / best
    content = {
        "rows": rows,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "runs": {name: {"command": commands[name], "median": medians(rounds[name]), "rounds": rounds[name]} for name in names},
    }
    print(write(arguments.out, content))


if __name__ == "__main__":
    main()
