"""One contender on one case: its job file, its run, and the figures that its record gives.

Everything is read from outside in the same way for all: the record that the contender's own process wrote, the clock, the memory.
"""

import hashlib
import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments
import gate
from cases import Case
from contenders import CONTENDERS, Contender
from measure import Failed, TooLong, run
from rows import Counted

from tunesmith.models.source import locate

HERE = Path(__file__).resolve().parent
LARGE = 2_000_000_000  # parameters from which peers' documented configurations recompute activations
WARM_STEPS = {"cpu": 0, "cuda": 1}  # not counted in the speed: a GPU's first step compiles and tunes kernels


@dataclass(frozen=True, slots=True)
class Place:
    """Where a suite runs, the same for all contenders."""

    work: Path
    environments: Path
    level: str
    device: str  # cpu or cuda
    dtype: str
    threads: int

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"


def is_ours(name: str) -> bool:
    return CONTENDERS[name].environment is None


def job_for(name: str, case: Case, file: Path, model: Path, counted: Counted, place: Place, out: Path) -> dict[str, Any]:
    """What the contender's script reads. Tokens of a step are those of so many rows, for everyone."""
    contender, ours = CONTENDERS[name], is_ours(name)
    per_step = case.per_step(place.level, ours)
    steps = max(1, round(counted.documents / per_step))
    per_document = counted.tokens / counted.documents
    return {
        "model": str(model), "rows": str(file), "out": str(out), "configuration": contender.configuration,
        "settings": list(contender.settings), "method": case.method, "quantize": case.quantize, "classify": case.classify,
        "labels": list(counted.labels), "begin": list(counted.begin), "rank": case.rank, "alpha": 2 * case.rank,
        "learning_rate": case.learning_rate, "rows_per_step": per_step, "row_tokens": case.row_tokens,
        "tokens_per_step": math.ceil(counted.tokens / steps), "packed_per_step": max(1, round(per_step * per_document / case.row_tokens)),
        "template": template(model), "large": parameters(model) > LARGE,
        "dtype": place.dtype, "device": place.device, "threads": place.threads,
    }  # fmt: skip


def template(model: Path) -> str:
    """LLaMA-Factory's name for what our models' chat template writes: plain ChatML, or with SmolLM2's own system prompt."""
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if (model / file).exists() and "named SmolLM" in (model / file).read_text(encoding="utf-8"):
            return "smollm2"
    return "chatml"


def parameters(model: Path) -> int:
    """Parameters, from the size of the weight files; two bytes each."""
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) // 2


def contender_run(name: str, case: Case, job: dict[str, Any], counted: Counted, place: Place, limit: float) -> dict[str, Any]:
    """The figures of one run, or `{"error": ...}`. Raises TooLong where it did not end within the limit."""
    contender, out = CONTENDERS[name], Path(job["out"])
    python, problem = interpreter(contender, place, limit)
    if problem:
        return {"error": problem}
    shutil.rmtree(out, ignore_errors=True)  # of a run that the time limit cut short, or of one before it
    file = out.with_suffix(".job.json")
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [python, str(HERE / "peers" / contender.script), str(file)]
    try:
        measured = run(command, cwd=place.work, threads=place.threads, log=out.with_suffix(".log"), limit=limit, gpu=place.gpu)
    except TooLong:
        raise
    except Failed as error:
        return {"error": environments.told(str(error))}
    record = out / "record.json"
    if not record.exists():
        return {"error": "it ended without a training"}
    found = figures(json.loads(record.read_text(encoding="utf-8")), counted, measured.begun, job)
    memory = {"device_bytes": measured.device_bytes} if place.gpu else {}
    key = "host_peak_bytes" if place.gpu else "peak_memory_bytes"
    return found | memory | {key: measured.peak_memory_bytes, "process_seconds": measured.seconds}


def interpreter(contender: Contender, place: Place, limit: float) -> tuple[str, str | None]:
    """The contender's Python, and why there is none. Ours serves where a peer cannot be installed but its versions are here."""
    name = contender.environment
    if name is None:
        return sys.executable, None
    folder = place.environments / name
    problem = environments.ready(folder, name, gpu=place.gpu, seconds=limit)
    if problem and environments.held_here(name):
        return sys.executable, None
    return environments.python(folder), problem


def figures(record: dict[str, Any], counted: Counted, begun: float, job: dict[str, Any]) -> dict[str, Any]:
    """Speed, times, memory and curve. `begun`: when the process started.

    Useful tokens are ours: a contender that saw some documents more or less than once is credited with those that it saw.
    """
    steps = [step for step in record["steps"] if step.get("at")]
    if not steps:
        return {"error": "it ended without a step"}
    seen, others = recognised([document for step in steps for document in step["documents"]], counted)
    share = seen / counted.documents
    warm = WARM_STEPS[job["device"]] if len(steps) > 1 else 0
    sizes = [sum(len(document["ids"]) for document in step["documents"]) for step in steps]
    counts = sum(sizes[warm:]) / max(1, sum(sizes))
    seconds = steps[-1]["at"] - (steps[warm - 1]["at"] if warm else record["began"])
    tokens, learned = (number * share * counts for number in (counted.tokens, counted.learned_tokens))
    first = {"seconds_to_first_step": steps[0]["at"] - record["loaded"]} if record.get("loaded") else {}
    names = {"allocated_bytes": "peak_memory_bytes", "reserved_bytes": "reserved_bytes"}
    return {to: record[of] for of, to in names.items() if of in record} | {
        "tokens_per_second": tokens / seconds,
        "learned_tokens_per_second": learned / seconds,
        "loop_seconds": steps[-1]["at"] - record["began"],
        **first,
        "seconds_from_start_to_first_step": steps[0]["at"] - begun,
        "steps": len(steps),
        "documents_seen": share,
        "documents_unknown": others,
        "losses": [step.get("loss") for step in steps],
        "versions": record.get("versions", {}),
        "warnings": record.get("warnings", []),
        **({"flops_per_token": record["flops_per_token"]} if "flops_per_token" in record else {}),
    }


def recognised(documents: list[dict[str, Any]], counted: Counted) -> tuple[int, int]:
    """How many of the case's documents are among these, each once, and how many are none of them.

    The line break behind an answer's stop token belongs to a document for some and not for others.
    """
    left, seen = Counter(counted.ids), 0
    for document in documents:
        ids = tuple(document["ids"])
        own = next((ids[:end] for end in range(len(ids), max(0, len(ids) - 3), -1) if left[ids[:end]]), None)
        if own is not None:
            left[own] -= 1
            seen += 1
    return seen, len(documents) - seen


def judged(found: dict[str, Any], case: Case, job: dict[str, Any], place: Place, limit: float) -> dict[str, Any]:
    """The gate's word on a run, the reference computed where it is not known yet."""
    wanted = case.replayed.get(place.level, 0)
    record = json.loads((Path(job["out"]) / "record.json").read_text(encoding="utf-8"))
    if found["documents_seen"] < 1 or found["documents_unknown"]:
        others = found["documents_unknown"]
        verdict = gate.Verdict(False, f"it saw {found['documents_seen']:.1%} of the documents once, and {others} that are not among them")
    elif not wanted:
        verdict = gate.judge(found["losses"], [[]], place.dtype)
        if verdict.agrees:
            verdict = gate.Verdict(True, "every loss is finite; no float32 reference fits here")
    else:
        curves = reference(record, case, job, place, wanted, limit)
        verdict = gate.judge(found["losses"], curves, place.dtype, case.noise)
    return {"agrees": verdict.agrees, "why": verdict.why, "largest": verdict.largest}


def reference(record: dict[str, Any], case: Case, job: dict[str, Any], place: Place, wanted: int, limit: float) -> list[list[float]]:
    """Curves of the plain computation over what a contender computed, one a seed; kept for whoever computed the same."""
    keys = ("model", "method", "quantize", "labels", "rank", "alpha", "learning_rate", "threads", "device")
    task = {key: job[key] for key in keys} | {"total_steps": len(record["steps"]), "seeds": 2 if case.noise or wanted > 2 else 1}
    task["steps"] = [
        sorted(step["documents"], key=lambda document: (document["ids"], document.get("label", 0))) for step in record["steps"][:wanted]
    ]
    folder = place.work.parent / "references"
    folder.mkdir(exist_ok=True)
    name = hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:24]
    asked, answer = folder / f"{name}.task.json", folder / f"{name}.json"
    if not answer.exists():
        asked.write_text(json.dumps(task), encoding="utf-8")
        aside = folder / f"{name}.new"
        command = [sys.executable, str(HERE / "reference.py"), str(asked), str(aside)]
        run(command, cwd=place.work, threads=place.threads, log=folder / f"{name}.log", limit=limit)
        aside.rename(answer)
    curves: list[list[float]] = json.loads(answer.read_text(encoding="utf-8"))
    return curves


def located(name: str, dtype: str) -> Path:
    """The folder of a case's model, in the number format that everyone computes in."""
    from shapes import SHAPES, in_dtype, made

    return made(name) if name in SHAPES else in_dtype(locate(name).folder, dtype)


def roofline(model: Path, case: Case, place: Place) -> dict[str, float]:
    """Matrix products at the model's shapes, in a process of its own: a GPU's context would stay with this one."""
    words = ["--dtype", place.dtype, "--device", place.device, "--rows", str(case.row_tokens), "--threads", str(place.threads)]
    seconds = "1" if place.level == "smoke" else "8"
    command = [sys.executable, str(HERE / "roofline.py"), str(model), *words, "--seconds", seconds]
    measured = run(command, cwd=place.work, threads=place.threads, log=place.work / "roofline.log")
    found: dict[str, float] = json.loads(measured.output.strip().splitlines()[-1])
    return found
