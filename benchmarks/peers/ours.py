"""Tunesmith on a job: the command of a person, then what it recorded of itself in the form that peers' records have."""

import sys
import time
from pathlib import Path
from typing import Any

from record import read_job, write

from tunesmith import cli, events
from tunesmith.models import load as loading
from tunesmith.run_yaml import flow
from tunesmith.train import folder, setting


def main() -> None:
    job = read_job()
    out, note = Path(job["out"]), {"loaded": None}
    own = loading.load

    def load(*arguments: Any, **named: Any) -> Any:
        base = own(*arguments, **named)
        note["loaded"] = time.time()  # type: ignore[assignment]
        return base

    loading.load = load
    code = cli.main(words(job))
    if code:
        sys.exit(code)
    happened = list(events.read_events(out / "events.jsonl"))
    [started] = [event for event in happened if isinstance(event, events.Started)]
    steps = [event for event in happened if isinstance(event, events.Step)]
    write(
        job,
        loaded=note["loaded"],
        began=started.time,
        flops_per_token=started.flops_per_token,
        warnings=[event.message for event in happened if isinstance(event, events.Warned)],
        steps=[{"loss": step.loss, "at": step.time, "documents": seen} for step, seen in zip(steps, documents(out), strict=True)],
    )


def words(job: dict[str, Any]) -> list[str]:
    """The command line that the job stands for; whatever a person would leave alone is left alone."""
    method = [] if job["method"] == "full" else [f"method.rank={job['rank']}", f"method.alpha={job['alpha']}"]
    task = ["task.name=classify", f"task.labels={flow(job['labels'])}"] if job["classify"] else []
    return [
        "train", "--model", job["model"], "--data", job["rows"], "--out", job["out"],
        "--method", "qlora" if job["quantize"] else job["method"], *method, *task,
        f"data.max_length={job['row_tokens']}", "train.epochs=1", f"train.learning_rate={job['learning_rate']}", "train.warmup=0.0",
        f"train.tokens_per_step={job['tokens_per_step']}", f"train.row_tokens={job['row_tokens']}", f"train.threads={job['threads']}",
        f"model.device={job['device']}", f"model.dtype={job['dtype']}", *job["settings"],
    ]  # fmt: skip


def documents(out: Path) -> list[list[dict[str, Any]]]:
    """Those of each step: a pure function of the run's settings."""
    decided = setting.decide(folder.open_run(out)[1].run, {})
    found = []
    for step in range(decided.steps):
        these = decided.plan.step_documents(step)
        found.append([_document(these, int(member)) for member in decided.plan.members(step)])
    decided.plan.close()
    return found


def _document(these: Any, member: int) -> dict[str, Any]:
    part = slice(int(these.begin_D[member]), int(these.end_D[member]))
    ids, learned = these.ids_N[part].tolist(), these.learned_N[part].astype(int).tolist()
    if these.labelled:
        return {"ids": ids[: len(ids) - 1], "label": ids[-1]}
    end = max(at for at in range(len(ids)) if learned[at]) + 1
    return {"ids": ids[:end], "learned": learned[:end]}


if __name__ == "__main__":
    main()
