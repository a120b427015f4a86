"""Tunesmith beside every peer, on the same rows, with the same loss: the suite behind the README's tables.

    python benchmarks/bench.py --data-root DATA                      CPU, one pass: make bench
    python benchmarks/bench.py --data-root DATA --level full         CPU, several rounds, more rows: make bench-full
    python benchmarks/bench.py --suite gpu --seconds 500             one NVIDIA GPU: make bench-gpu
    python benchmarks/bench.py --smoke                               a tiny model, to see that everything runs

Every finished run is a line of results/bench_SUITE.jsonl at once, and a second call goes on from there; `--seconds` ends a call in
time and says what is left. `--again tunesmith` measures one contender (or case) anew. README.md beside this file says what counts.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import job as jobs
import ledger
import rows
from cases import CASES, Case
from contenders import CONTENDERS
from job import Place
from measure import RESULTS, ROOT, WORK, Failed, TooLong, write

from tunesmith import hardware

LEVELS = {"cpu": "quick", "gpu": "gpu"}
ROUNDS = {"smoke": 1, "quick": 1, "full": 3, "gpu": 1}
LEAST = 20.0  # seconds that a run of unknown length is still begun with
GRACE = 0.9  # of a whole call that a run had to itself: no later call would give it more


def main() -> None:
    arguments = read_arguments()
    deadline = time.monotonic() + arguments.seconds
    level = "smoke" if arguments.smoke else arguments.level or LEVELS[arguments.suite]
    device = "cuda" if arguments.suite == "gpu" and not arguments.smoke else "cpu"
    dtype = str(hardware.default_dtype(hardware.device(device))[0]).removeprefix("torch.")
    results = WORK if arguments.smoke else RESULTS
    log = results / f"{arguments.out}.jsonl"
    if arguments.again:
        ledger.forget(log, set(arguments.again.split(",")))
    ledger.machine_of(log, hardware.describe())
    place = Place(WORK / arguments.out, arguments.environments.resolve(), level, device, dtype, arguments.threads)
    place.work.mkdir(parents=True, exist_ok=True)
    chosen = chosen_cases(arguments, level)
    rounds = arguments.rounds or ROUNDS[level]

    judge_later(log, place, deadline)
    left = list(ledger.pending(chosen, rounds, ledger.read(log, place.level)))
    total, stopped = len(left), False
    for number, (name, contender, turn) in enumerate(left):
        remaining = deadline - time.monotonic()
        expected = ledger.expected_seconds(ledger.read(log, place.level), name, contender)
        if remaining < max(LEAST, 1.1 * expected) and expected < GRACE * arguments.seconds:
            stopped = True
            continue
        print(f"{number + 1}/{total} {name}: {contender}, round {turn + 1}; {remaining / 60:.1f} min left", flush=True)
        line = measure(name, chosen[name], contender, turn, place, arguments, log, deadline)
        if line is None:
            stopped = True
            continue
        ledger.append(log, line)
        print(f"    {in_words(line)}", flush=True)
    common = {"suite": arguments.suite, "level": level, "rounds": rounds, "threads": arguments.threads, "dtype": dtype}
    print(write(arguments.out, common | ledger.content(ledger.read(log, place.level)), results))
    tell_left(list(ledger.pending(chosen, rounds, ledger.read(log, place.level))), stopped)


def measure(
    name: str, case: Case, contender: str, turn: int, place: Place, arguments: argparse.Namespace, log: Path, deadline: float
) -> dict[str, Any] | None:
    """The line of one run; None where the time ended first and another call may have more."""
    line: dict[str, Any] = {"kind": "run", "case": name, "contender": contender, "round": turn, "level": place.level}
    had = deadline - time.monotonic()
    try:
        model, file, counted = prepared(name, case, contender, place, arguments.data_root, log)
        out = place.work / f"{name}-{contender}-{turn}"
        job = jobs.job_for(contender, case, file, model, counted, place, out)
        found = jobs.contender_run(contender, case, job, counted, place, max(1.0, deadline - time.monotonic()))
    except TooLong as error:
        return line | {"error": str(error)} if had > GRACE * arguments.seconds else None
    except SystemExit as error:  # the model does not fit the disk
        return line | {"error": str(error)}
    if "error" in found:
        return None if "not installed within" in found["error"] else line | found
    return line | found | {"gate": gate_of(found, case, job, place, deadline)}


def gate_of(found: dict[str, Any], case: Case, job: dict[str, Any], place: Place, deadline: float) -> dict[str, Any] | None:
    """The gate's word; None where the time ended before the reference was computed: the next call does that first."""
    try:
        return jobs.judged(found, case, job, place, max(1.0, deadline - time.monotonic()))
    except TooLong:
        return None
    except Failed as error:
        return {"agrees": False, "why": f"no reference: {str(error).splitlines()[-1]}", "largest": None}


def judge_later(log: Path, place: Place, deadline: float) -> None:
    """Runs that still wait for their reference; one whose record is gone is measured anew."""
    for line in [each for each in ledger.read(log, place.level) if each["kind"] == "run" and each.get("gate", 1) is None]:
        name, contender = line["case"], line["contender"]
        file = place.work / f"{name}-{contender}-{line['round']}.job.json"
        gate = None
        if file.exists():
            print(f"the reference of {name}: {contender}", flush=True)
            gate = gate_of(line, CASES[name], json.loads(file.read_text(encoding="utf-8")), place, deadline)
        if gate or not file.exists():
            ledger.replace(log, line, {**line, "gate": gate} if gate else None)


def prepared(name: str, case: Case, contender: str, place: Place, data: Path | None, log: Path) -> tuple[Path, Path, rows.Counted]:
    """The model, the rows' file and what is in it; facts of the case and the roofline are noted once a call."""
    key = (name, jobs.is_ours(contender))
    if key not in _PREPARED:
        model = jobs.located(case.model, place.dtype)
        count = case.count(place.level, key[1])
        file = rows.make(case, count, data, model, place.work / f"{name}-{count}")
        counted = rows.count(case, file, model)
        if key[1]:
            facts = {field: value for field, value in dataclasses.asdict(counted).items() if field not in ("begin", "labels", "ids")}
            made_up = case.rows not in ("shared_prefix", "chats") and not rows.found(case, data)
            facts |= {"model": case.model, "rows_per_step": case.per_step(place.level, True), "made_up": made_up}
            facts |= {"one_in": case.one_in.get(place.level, 1)}
            ledger.append(log, {"kind": "case", "case": name, "level": place.level, **facts})
            if case.model not in _ROOFED:
                _ROOFED.add(case.model)
                roof = {"kind": "roofline", "level": place.level, "model": case.model}
                ledger.append(log, roof | {"directions": jobs.roofline(model, case, place)})
        _PREPARED[key] = (model, file, counted)
    return _PREPARED[key]


_PREPARED: dict[tuple[str, bool], tuple[Path, Path, rows.Counted]] = {}
_ROOFED: set[str] = set()


def chosen_cases(arguments: argparse.Namespace, level: str) -> dict[str, Case]:
    chosen = {name: case for name, case in CASES.items() if case.suite == arguments.suite}
    if arguments.cases:
        chosen = {name: CASES[name] for name in arguments.cases.split(",")}
    only = set(arguments.only.split(",")) if arguments.only else set(CONTENDERS)
    chosen = {
        name: dataclasses.replace(case, contenders=tuple(each for each in case.contenders if each in only or each == case.contenders[0]))
        for name, case in chosen.items()
    }
    return {name: dataclasses.replace(case, model="tiny") for name, case in chosen.items()} if level == "smoke" else chosen


def in_words(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"not measured: {line['error'].splitlines()[-1]}"
    gate = "; its reference is not computed yet" if line["gate"] is None else ""
    if line["gate"] and not line["gate"]["agrees"]:
        gate = f"; the curve differs: {line['gate']['why']}"
    return f"{line['tokens_per_second']:.0f} useful tokens/s, {line['peak_memory_bytes'] / 1e9:.2f} GB{gate}"


def tell_left(left: list[tuple[str, str, int]], stopped: bool) -> None:
    if not left:
        print("all is measured")
        return
    print(f"{len(left)} runs are left{', the time being over' if stopped else ''}; the same command goes on:")
    for name in dict.fromkeys(case for case, _, _ in left):
        print(f"    {name}: {', '.join(f'{contender} {turn + 1}' for case, contender, turn in left if case == name)}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--level", choices=("quick", "full", "gpu"), help="quick on a CPU, gpu on a GPU")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few rows on the CPU, into results of its own")
    parser.add_argument("--data-root", type=Path, help="a folder of the public data sets; rows are made up without it")
    parser.add_argument("--cases", help="some of " + ",".join(CASES))
    parser.add_argument("--only", help="some contenders beside the first of each case, of " + ",".join(CONTENDERS))
    parser.add_argument("--again", default="", help="contenders or cases that are measured anew")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, default=1e6, help="end the call after so long; the next one goes on")
    parser.add_argument("--threads", type=int, default=hardware.physical_cores())
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--out", help="name of the results files")
    arguments = parser.parse_args()
    arguments.out = arguments.out or ("bench_smoke" if arguments.smoke else f"bench_{arguments.suite}")
    arguments.data_root = arguments.data_root and arguments.data_root.resolve()
    return arguments


if __name__ == "__main__":
    main()
