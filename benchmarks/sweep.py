"""Which learning rate, which first values: every method on SmolLM2-135M-Instruct and three kinds of data, by successive halving.

    python benchmarks/sweep.py --data-root DATA --minutes 180       goes on where it stopped; a line a run in results/sweep.jsonl
    python benchmarks/sweep.py --data-root DATA --table             what is known so far
    python benchmarks/sweep.py --data-root DATA --write             the best of each as rows of tunesmith/plan/evidence.jsonl

Which run comes next is said in halving.py. The score is the loss of held-out answers after training, beside the base's own. DATA
holds sst2/ and llamafactory_demo/ as their authors publish them; without it the tickets alone are swept. Each run is a process of
its own, so that its memory is its own.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halving import FAILED, Trial, in_turn, pending, planned_tokens
from measure import MODEL, RESULTS, ROOT, figures, fresh, run, tunesmith

from tunesmith import cli, events, hardware
from tunesmith.methods.method import METHODS, learning_rates
from tunesmith.methods.rates import rate_at
from tunesmith.methods.settings import SETTINGS
from tunesmith.models.load import load_config
from tunesmith.models.source import locate
from tunesmith.plan import evidence
from tunesmith.train import loop  # noqa: F401  imported once, for all runs

TOKENS_PER_STEP = 256
HELD_OUT = 32  # rows
KINDS = {"tickets": "extraction", "sst2": "classification", "alpaca": "chat"}


@dataclass(slots=True)
class Known:
    """What has been measured: a line a trial."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def loss(self, trial: Trial) -> float | None:
        """Of held-out answers after training; None where it was not run."""
        line = self.of(trial)
        return None if line is None else FAILED if line["after"] is None else line["after"]

    def of(self, trial: Trial) -> dict[str, Any] | None:
        key = _key(trial)
        return next((line for line in self.lines if all(line.get(name) == value for name, value in key.items())), None)


def _key(trial: Trial) -> dict[str, Any]:
    return {name: getattr(trial, name) for name in ("dataset", "method", "settings", "learning_rate", "tokens")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder of public data sets")
    parser.add_argument("--minutes", type=float, default=180.0, help="no run begins later than this (%(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="%(default)s")
    parser.add_argument("--datasets", default=",".join(KINDS), help="%(default)s")
    parser.add_argument("--tokens", type=int, default=20_000, help="of the longest run (%(default)s)")
    parser.add_argument("--model", default=MODEL, help="%(default)s")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--out", default="sweep", help="name of the results file")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    parser.add_argument("--write", action="store_true", help="print it, and write the best runs as evidence")
    parser.add_argument("--shared", action="store_true", help="other programs ran beside the sweep: its seconds are not written")
    arguments = parser.parse_args()
    log = RESULTS / f"{arguments.out}.jsonl"
    known = Known([json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else [])
    if not (arguments.table or arguments.write):
        try:
            sweep(arguments, known, log)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on")
    width = load_config(locate(arguments.model).folder).get_text_config().hidden_size
    print("\n".join(table(known, arguments.tokens, width)))
    if arguments.write:
        rows = list(evidence_rows(known, arguments.tokens, arguments.model, arguments.shared))
        evidence.add(rows)
        print(f"{len(rows)} rows written to {evidence.EVIDENCE.relative_to(ROOT)}")


def sweep(arguments: argparse.Namespace, known: Known, log: Path) -> None:
    """Make runs until all are made or the time is over."""
    begun, work = time.monotonic(), fresh("sweep")
    os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    files = data(arguments.datasets.split(","), arguments.data_root, work)
    methods = [name for name in METHODS if name in arguments.methods.split(",")]
    width = load_config(locate(arguments.model).folder).get_text_config().hidden_size

    def ask(dataset: str, method: str) -> Callable[[], list[Trial]]:
        rate = rate_at(learning_rates(SETTINGS[method]()), width)
        return lambda: pending(dataset, method, rate, arguments.tokens, known.loss)

    def record(line: dict[str, Any]) -> None:
        known.lines.append(line)
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    for dataset, (train, held_out) in files.items():
        before = base_loss(dataset, held_out, arguments, work, known, record)
        for trial in in_turn([ask(dataset, method) for method in methods]):
            if time.monotonic() - begun > 60 * arguments.minutes:
                print("the time is over; the same command goes on")
                return
            line = measure(trial, train, held_out, before, arguments, work)
            record(line)
            after = "failed" if line["after"] is None else f"{line['after']:.3f}"
            left = time_left(known, list(files), methods, arguments.tokens)
            print(
                f"{dataset:8} {trial.method:11} {trial.learning_rate:<8g} {trial.settings:24} {trial.tokens:6,} tokens: "
                f"{before:.3f} -> {after}  ({line['seconds'] or 0:.0f} s; about {left / 60:.0f} min left)",
                flush=True,
            )


def time_left(known: Known, datasets: list[str], methods: list[str], tokens: int) -> float:
    """Seconds, from what runs took so far by token."""
    runs = [line for line in known.lines if line["method"] and line["dataset"] in datasets and line["method"] in methods]
    whole = len(datasets) * sum(planned_tokens(method, tokens) for method in methods)
    done = sum(line["tokens"] for line in runs)
    return max(0, whole - done) * sum(line["process_seconds"] for line in runs) / max(1, done)


def data(names: list[str], root: Path | None, work: Path) -> dict[str, tuple[str, str]]:
    """(training source, held-out source) by name. Raises SystemExit where a public data set is wanted and not there."""
    draw, found = random.Random(0), {}
    for name in names:
        if name == "tickets":
            found[name] = ("builtin:tickets", f"builtin:tickets-test#{HELD_OUT}")
            continue
        if root is None:
            print(f"{name}: left out; it needs --data-root")
            continue
        rows = _sst2(root / "sst2/train.txt") if name == "sst2" else _alpaca(root / "llamafactory_demo/alpaca_en_demo.json")
        draw.shuffle(rows)
        for part, chosen in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT : HELD_OUT + 2000])):
            (work / f"{name}-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        found[name] = (str(work / f"{name}-train.jsonl"), str(work / f"{name}-held_out.jsonl"))
    return found


def _sst2(path: Path) -> list[dict[str, str]]:
    """`1 a stirring , funny ...`: a label, a blank, a sentence."""
    question, words = "Is this review positive or negative? Answer with one word.", {"0": "negative", "1": "positive"}
    pairs = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [{"prompt": f"{question}\n{text}", "completion": words[label]} for label, text in pairs]


def _alpaca(path: Path) -> list[dict[str, str]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [{"prompt": "\n".join(filter(None, (row["instruction"], row.get("input")))), "completion": row["output"]} for row in rows]


def base_loss(
    dataset: str, held_out: str, arguments: argparse.Namespace, work: Path, known: Known, record: Callable[[dict[str, Any]], None]
) -> float:
    """The base model's own loss on the held-out rows, measured once."""
    line = next((line for line in known.lines if line["dataset"] == dataset and not line["method"]), None)
    if line is None:
        words = ["evaluate", arguments.model, "--data", held_out, "--metrics", "loss", "--json"]
        output = run(tunesmith(*words), cwd=work, threads=arguments.threads, log=work / f"{dataset}-base.log").output
        line = {"dataset": dataset, "method": "", "after": json.loads(output)["scores"]["loss"]}
        record(line)
    return float(line["after"])


def measure(trial: Trial, train: str, held_out: str, before: float, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make one run and read its folder, which is removed then: full tuning leaves gigabytes."""
    steps = max(1, trial.tokens // TOKENS_PER_STEP)
    words = ["train", "--model", arguments.model, "--data", train, "--method", trial.method, "--out", "run"]
    words += [f"method.{name}={value}" for name, value in json.loads(trial.settings).items()]
    words += [f"train.steps={steps}", f"train.tokens_per_step={TOKENS_PER_STEP}", f"train.learning_rate={trial.learning_rate:g}"]
    words += [f"train.threads={arguments.threads}", f"train.checkpoint_every={steps}", f"data.evaluate={held_out}"]
    words += [f"evaluate.every={steps}", "evaluate.forgetting=false", "data.max_length=512"]
    shutil.rmtree(work / "run", ignore_errors=True)
    line: dict[str, Any] = _key(trial) | {"before": before, "after": None, "seconds": None, "threads": arguments.threads}
    begun = time.monotonic()
    if (code := _forked(words, work, work / "run.log")) != 0:  # a rate at which the loss is not finite, say: a result, too
        reason = (work / "run.log").read_text(encoding="utf-8", errors="replace").strip().rpartition("tunesmith: ")[2][:300]
        reason = reason.replace(str(work), "").replace(str(ROOT), "").replace(str(Path.home()), "~")
        print(f"exit code {code}: {reason}")
        return line | {"failed": reason, "process_seconds": time.monotonic() - begun}
    happened = list(events.read_events(work / "run" / "events.jsonl"))
    evaluated = [event for event in happened if isinstance(event, events.Evaluated)]
    started = next(event for event in happened if isinstance(event, events.Started))
    found, report = figures(work / "run"), json.loads((work / "run" / "data.json").read_text(encoding="utf-8"))
    return line | {
        "after": evaluated[-1].loss if evaluated[-1].loss < FAILED else None,
        "seconds": found["loop_seconds"],
        "process_seconds": time.monotonic() - begun,
        "peak_memory_bytes": found["peak_memory_bytes"],
        "trainable_parameters": started.trainable_parameters,
        "model_parameters": started.total_parameters,
        "examples": round(found["tokens"] * report["documents"] / report["tokens"]),
    }


def _forked(words: list[str], cwd: Path, log: Path) -> int:
    """The command's exit code. The process begins with this one's imports, which cost as much as a short run, and nothing else:
    no tensor has been made here, so no threads and no memory of another run come along."""

    def child() -> None:
        os.chdir(cwd)
        with open(log, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.exit(cli.main(words))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode or 0


def finals(known: Known, tokens: int) -> list[dict[str, Any]]:
    """The longest finished run of each method and data set, the better one of those equally long."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for line in known.lines:
        if not line["method"] or line["after"] is None or line["tokens"] > tokens:
            continue
        key = (line["dataset"], line["method"])
        if key not in best or (-line["tokens"], line["after"]) < (-best[key]["tokens"], best[key]["after"]):
            best[key] = line
    return sorted(best.values(), key=lambda line: (list(KINDS).index(line["dataset"]), line["after"]))


def table(known: Known, tokens: int, width: int) -> list[str]:
    """Markdown: the best run of each method and data set, then the rate of each method over all."""
    found = finals(known, tokens)
    lines = [
        "",
        "| data | method | rate | settings | tokens | loss before | after | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        lines.append(
            f"| {line['dataset']} | {line['method']} | {line['learning_rate']:g} | {_shown(line['settings'])} | {line['tokens']:,} | "
            f"{line['before']:.3f} | {line['after']:.3f} | {line['seconds']:.0f} | {line['peak_memory_bytes'] / 1e6:.0f} |"
        )
    lines += ["", f"| method | best rate at {width} channels | default there |", "|---|---|---|"]
    for method in METHODS:
        rates = [line["learning_rate"] for line in found if line["method"] == method]
        if rates:
            rate = statistics.geometric_mean(rates)
            here = f"{rate:.2g} ({', '.join(f'{each:g}' for each in rates)})"
            lines.append(f"| {method} | {here} | {rate_at(learning_rates(SETTINGS[method]()), width):g} |")
    return lines


def _shown(settings: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in json.loads(settings).items()) or "defaults"


def evidence_rows(known: Known, tokens: int, model: str, shared: bool = False) -> Iterator[evidence.Row]:
    """The best whole runs as evidence; those that were not trained on all the tokens are not."""
    machine = hardware.describe()
    source = f"benchmarks/sweep.py: {machine['cpu']}, {machine['physical_cores']} cores, torch {machine['torch']}"
    for line in finals(known, tokens):
        if line["tokens"] == tokens:
            yield evidence.Row(
                method=line["method"],
                model=model.removeprefix("builtin:"),
                model_parameters=line["model_parameters"],
                task_kind=KINDS[line["dataset"]],
                dataset=line["dataset"],
                examples=line["examples"],
                score=line["after"],
                score_name="loss",
                score_before=line["before"],
                forgetting=None,
                trainable_parameters=line["trainable_parameters"],
                memory_bytes=int(line["peak_memory_bytes"]),
                seconds=None if shared else float(line["seconds"]),
                learning_rate=line["learning_rate"],
                settings=json.loads(line["settings"]),
                source=source,
            )


if __name__ == "__main__":
    main()
