"""Real data, before and after: RESTAURANTS-8K (text to JSON) and BANKING77 (a label as text), at most 200,000 tokens of training each.

    python benchmarks/before_after.py --data-root DATA              trains, asks base and tuned model; results/before_after.json
    python benchmarks/before_after.py --data-root DATA --steps 1 --test-rows 2 --out try

DATA holds restaurant8k_slots/{train,test}.json and banking77/{train,test}.csv as their authors publish them. The commands in the
results file are exactly those that ran, with DATA for the folder. Every score that was measured is written, good or not.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from measure import MODEL, figures, fresh, run, tunesmith, write

from tunesmith import hardware

BUDGET = 200_000  # tokens of training
TOKENS_PER_STEP = 512
LEARNING_RATE = 2e-3  # above the default, for runs this short
TASKS: dict[str, dict[str, Any]] = {
    "restaurant8k_slots": {
        "title": "RESTAURANTS-8K: slots as JSON",
        "train": "restaurant8k_slots/train.json",
        "test": "restaurant8k_slots/test.json",
        "settings": [
            "data.columns={completion: labels}",
            "data.prompt=Find the slots people, date, time, first_name and last_name. Answer with JSON.\\n{userInput.text}",
        ],
        "metrics": "loss,exact_match,json_valid,json_fields",
    },
    "banking77": {
        "title": "BANKING77: intent as text",
        "train": "banking77/train.csv",
        "test": "banking77/test.csv",
        "settings": [
            "data.columns={completion: category}",
            "data.prompt=Which banking intent is this? Answer with its name only.\\n{text}",
        ],
        "metrics": "loss,exact_match,accuracy,macro_f1",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS), help="%(default)s")
    parser.add_argument("--steps", type=int, default=BUDGET // TOKENS_PER_STEP - 3, help="optimizer steps of 512 tokens (%(default)s)")
    parser.add_argument("--test-rows", type=int, default=300, help="a fixed sample of the test file (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (%(default)s)")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="before_after", help="name of the results file")
    arguments = parser.parse_args()
    work = fresh("before-after")
    tasks = {name: measure(name, arguments, work) for name in arguments.tasks.split(",")}
    print(write(arguments.out, {"threads": arguments.threads, "budget_tokens": BUDGET, "tasks": tasks}))


def measure(name: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train on one task, then ask the base and the tuned model the same rows, greedily."""
    task, root = TASKS[name], arguments.data_root.resolve()
    train = ["train", "--model", MODEL, "--data", f"{root}/{task['train']}", "--out", name, *spelled(task["settings"])]
    train += ["method.rank=16", f"train.steps={arguments.steps}", f"train.tokens_per_step={TOKENS_PER_STEP}"]
    train += [f"train.learning_rate={LEARNING_RATE:g}"]
    train += [f"train.threads={arguments.threads}"]
    asked = ["evaluate", name, "--data", f"{root}/{task['test']}#{arguments.test_rows}", "--against", "base"]
    asked += ["--metrics", task["metrics"], "--max-new-tokens", str(arguments.max_new_tokens), "--json"]
    print(f"{name}: training", flush=True)
    trained = run(tunesmith(*train), cwd=work, threads=arguments.threads, log=work / f"{name}-train.log")
    found = figures(work / name)
    if found["tokens"] > BUDGET:
        raise SystemExit(f"{name}: trained {found['tokens']:,.0f} tokens, more than {BUDGET:,}; take fewer --steps")
    print(f"{name}: asking base and tuned model {arguments.test_rows} rows", flush=True)
    evaluated = run(tunesmith(*asked), cwd=work, threads=arguments.threads, log=work / f"{name}-evaluate.log")
    scores = json.loads(evaluated.output)
    return {
        "title": task["title"],
        "commands": [shlex.join(["tunesmith", *words]).replace(str(root), "DATA") for words in (train, asked)],
        "training": found | {"process_seconds": trained.seconds},
        "evaluation_seconds": evaluated.seconds,
        "rows": scores["data"]["rows"],
        "data_sha256": scores["data"]["sha256"],
        "before": {key: scores["against"][key] for key in ("scores", "intervals", "answers", "unfinished")},
        "after": {key: scores[key] for key in ("scores", "intervals", "answers", "unfinished")},
        "difference": scores["difference"],
    }


def spelled(settings: list[str]) -> list[str]:
    """KEY=VALUE words whose value reads the same from YAML: a text with a line break goes in double quotes."""
    words = []
    for setting in settings:
        key, _, value = setting.partition("=")
        words.append(f'{key}="{value}"' if "\\n" in value else setting)
    return words


if __name__ == "__main__":
    main()
