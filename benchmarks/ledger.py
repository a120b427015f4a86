"""The suite's memory: one line of results/NAME.jsonl for whatever is finished, and the JSON that is made of all lines.

A second call goes on where the first one stopped. Lines of another machine are refused: their figures would not compare.
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import environments
from cases import CASES, Case
from contenders import CONTENDERS
from gate import FIRST, LATER
from roofline import rate

RATIOS = ("tokens_per_second", "peak_memory_bytes", "process_seconds")
FIGURES = (
    "tokens_per_second", "learned_tokens_per_second", "peak_memory_bytes", "reserved_bytes", "device_bytes", "seconds_to_first_step",
    "seconds_from_start_to_first_step", "loop_seconds", "process_seconds",
)  # fmt: skip
SAME = ("cpu", "physical_cores", "bf16_instructions", "gpus", "torch", "transformers")  # or figures do not compare
Line = dict[str, Any]


def read(log: Path, level: str | None = None) -> list[Line]:
    """All lines, or those of one level; one that a kill cut short is left out."""
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]
    return [line for line in lines if level is None or line.get("level", level) == level]


def append(log: Path, line: Line) -> None:
    """At once and whole: what a kill left of a line before it is ended first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    broken = log.exists() and log.read_bytes()[-1:] not in (b"", b"\n")
    if broken:
        log.write_bytes(log.read_bytes().rpartition(b"\n")[0] + b"\n")
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def forget(log: Path, names: set[str]) -> None:
    """Take the lines of these contenders or cases out, so that they are measured again."""
    kept = [line for line in read(log) if not names & {line.get("contender"), line.get("case")}]
    log.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")


def replace(log: Path, old: Line, new: Line | None) -> None:
    """Another line in the place of one, or none."""
    kept = [new if line == old else line for line in read(log)]
    log.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept if line is not None), encoding="utf-8")


def machine_of(log: Path, machine: Line) -> None:
    """Note the machine in a new log. Raises SystemExit where the log is of another one."""
    known = next((line["machine"] for line in read(log) if line["kind"] == "machine"), None)
    if known is None:
        append(log, {"kind": "machine", "machine": machine})
    elif differing := [key for key in SAME if known.get(key) != machine.get(key)]:
        what = ", ".join(differing)
        raise SystemExit(f"{log.name} was begun on another machine or with other libraries ({what}): delete it or take --out NAME")


def done(lines: list[Line]) -> set[tuple[str, str, int]]:
    """(case, contender, round) that need not run again. What failed once is not tried in later rounds either."""
    found = {(line["case"], line["contender"], line["round"]) for line in lines if line["kind"] == "run"}
    failed = {(line["case"], line["contender"]) for line in lines if line["kind"] == "run" and "error" in line}
    return found | {(case, contender, number) for case, contender in failed for number in range(1000)}


def pending(chosen: Mapping[str, Case], rounds: int, lines: list[Line]) -> Iterator[tuple[str, str, int]]:
    """What is left, round by round; in each round the contenders of a case in another order, so that a slow minute meets all."""
    finished = done(lines)
    for number in range(rounds):
        for name, case in chosen.items():
            turn = number % len(case.contenders)
            for contender in case.contenders[turn:] + case.contenders[:turn]:
                if (name, contender, number) not in finished:
                    yield name, contender, number


def expected_seconds(lines: list[Line], case: str, contender: str) -> float:
    """How long a run takes: as the same one did, else as the longest of its case did, else unknown: 0."""
    beside = [line for line in lines if line.get("case") == case and "process_seconds" in line]
    same = [line["process_seconds"] for line in beside if line["contender"] == contender]
    return statistics.median(same) if same else max((line["process_seconds"] for line in beside), default=0.0)


def content(lines: list[Line]) -> Line:
    """The results file: every case that has a line. Ratios are medians over rounds of (ours / this one) within a round."""
    cases = {}
    for name in dict.fromkeys(line["case"] for line in lines if line["kind"] == "run"):
        facts = next((line for line in reversed(lines) if line["kind"] == "case" and line["case"] == name), {})
        cases[name] = of_case(CASES[name], [line for line in lines if line.get("case") == name and line["kind"] == "run"], facts, lines)
    return {
        "pins": environments.PINS,
        "gate": {"first_step": FIRST, "later_steps": LATER},
        "cases": cases,
    }


def of_case(case: Case, runs: list[Line], facts: Line, lines: list[Line]) -> Line:
    first = case.contenders[0]
    by_name = {name: [run for run in runs if run["contender"] == name] for name in case.contenders}
    roofs = [line["directions"] for line in lines if line["kind"] == "roofline" and line["model"] == facts.get("model")]
    # a busy moment only ever lowers a measured rate: the best of all calls is the machine's
    wall = max((rate(each, case.method == "full") for each in roofs), default=None)
    flops = next((run["flops_per_token"] for run in by_name[first] if "flops_per_token" in run), None)
    result: Line = {"title": case.title, **{key: value for key, value in facts.items() if key not in ("kind", "case")}}
    result |= {"matmul_flops": wall, "flops_per_token": flops, "contenders": {}}
    for name, found in by_name.items():
        if not found:
            continue
        whole = [run for run in found if "error" not in run]
        entry: Line = {"title": CONTENDERS[name].title, "configuration": CONTENDERS[name].configuration}
        if not whole:
            result["contenders"][name] = entry | {"error": found[0]["error"]}
            continue
        entry["median"] = {key: statistics.median(run[key] for run in whole) for key in FIGURES if all(key in run for run in whole)}
        if wall and flops:
            entry["share_of_roofline"] = entry["median"]["tokens_per_second"] * flops / wall
        entry["ours_over_this"] = ratios(by_name[first], whole)
        entry["gate"] = worst([run["gate"] for run in whole])
        entry["losses"] = whole[0]["losses"]
        entry["versions"] = whole[0].get("versions", {})
        entry["warnings"] = whole[0].get("warnings", [])
        entry["rounds"] = [{key: run[key] for key in (*FIGURES, "round") if key in run} for run in whole]
        result["contenders"][name] = entry
    return result


def ratios(ours: list[Line], theirs: list[Line]) -> Line:
    """{figure: median of ours over theirs}, of the rounds that both have."""
    mine = {run["round"]: run for run in ours if "error" not in run}
    pairs = [(mine[run["round"]], run) for run in theirs if run["round"] in mine]
    return {
        key: statistics.median(a[key] / b[key] for a, b in pairs)
        for key in RATIOS
        if pairs and all(key in a and b.get(key) for a, b in pairs)
    }


def worst(verdicts: list[Line]) -> Line:
    """That of a round which does not agree, else the one with the largest difference."""
    waiting: Line = {"agrees": False, "why": "the reference is not computed yet", "largest": None}
    return min((verdict or waiting for verdict in verdicts), key=lambda verdict: (verdict["agrees"], -(verdict["largest"] or 0.0)))
