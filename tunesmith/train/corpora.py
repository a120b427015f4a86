"""The tokens that a run learns from and those it is evaluated on: sources weighted, rows held out, replay mixed in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith import hardware
from tunesmith.config import Run
from tunesmith.data.blocks import Sources, open_sources
from tunesmith.data.documents import Documents, Prepared, prepare
from tunesmith.data.render import Renderer
from tunesmith.data.sources import pick, understand, weigh
from tunesmith.errors import UserError
from tunesmith.models.source import cache_folder

LARGE = 4 << 20  # bytes of data from which on starting processes pays


@dataclass(frozen=True)
class Corpus:
    documents: Documents
    evaluation: Documents | None
    report: dict[str, Any]  # data.json
    is_text: bool


def read(run: Run, renderer: Renderer) -> Corpus:
    """Raises UserError with everything in the data that cannot be used, ProofFailed where a mask is wrong."""
    sources, weights = training(run)
    prepared = _prepared(run, renderer, sources)
    rows, held_out, set_aside = chosen(run, prepared, weights)
    documents = prepared.of_rows(rows)
    report = prepared.report(np.unique(rows), documents)
    evaluation = None
    if run.data.evaluate is not None:
        if isinstance(run.data.evaluate, str):
            other = _prepared(run, renderer, open_sources([run.data.evaluate], sources.reading, run.data.info))
            evaluated, eval_rows = other, np.arange(other.rows)
        else:
            evaluated, eval_rows = prepared, held_out
        evaluation = evaluated.of_rows(eval_rows)
        told = evaluated.report(eval_rows, evaluation)
        report["evaluation"] = {key: told[key] for key in ("rows", "documents", "tokens", "learned_tokens", "mask_sha256")}
        report["evaluation"]["rows"] = len(eval_rows)
        if not len(evaluation):
            raise UserError(f"data.evaluate={run.data.evaluate}: no row is left to evaluate on")
    report["rows_read"] = report["rows"] + sum(set_aside.values())
    report["set_aside"] = set_aside
    return Corpus(documents, evaluation, report, prepared.is_text)


def training(run: Run) -> tuple[Sources, list[float]]:
    """All sources to learn from, that of `data.replay` last, and their weights (that of replay is not known yet: NaN, or 1)."""
    train, data = run.data.train, run.data
    named = [(train, 1.0)] if isinstance(train, str) else [(source.source, source.weight) for source in train]
    if data.replay is not None:
        named.append((data.replay, 1.0 if "#" in data.replay else float("nan")))
    reading = understand(**data.reading)
    return open_sources([name for name, _ in named], reading, data.info), [weight for _, weight in named]


def _prepared(run: Run, renderer: Renderer, sources: Sources) -> Prepared:
    prepared = prepare(
        sources,
        renderer,
        max_length=run.data.max_length,
        on_overlength=run.data.on_overlength,
        cache=cache_folder() / "tokens",
        workers=workers(run, sources.bytes),
    )
    refuse_judged(sources, {report.format for report in prepared.reports})
    prepared.refuse(run.data.on_bad_row, run.data.max_length)
    return prepared


def refuse_judged(sources: Sources, formats: set[str]) -> None:
    """Raises UserError for rows that hold answers which must not be imitated."""
    if "preference" in formats:
        raise UserError(
            f"{', '.join(sources.names)}: preference pairs or judged answers; this version reads and checks them, but trains on answers only",
            "to learn the chosen answers, name their column: data.columns={prompt: THEIR_PROMPT, completion: chosen}",
        )


def workers(run: Run, size: int) -> int:
    """How many processes tokenise `size` bytes."""
    if run.data.workers != "auto":
        return run.data.workers
    return min(8, hardware.physical_cores()) if size >= LARGE else 0


def chosen(run: Run, prepared: Prepared, weights: list[float]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, int]]:
    """Rows to learn from (a row may come twice), rows held out, and how many rows are neither, for what reason."""
    assert prepared.sources is not None
    source_R = np.array(prepared.sources.source_F, np.int64)[prepared.file_R]
    weights = with_replay(run, weights, np.bincount(source_R, minlength=len(weights)).tolist())
    taken: list[int] = []
    for number, weight in enumerate(weights):
        taken += weigh(np.flatnonzero(source_R == number).tolist(), weight)
    held_out: list[int] = []
    if isinstance(run.data.evaluate, float):
        distinct = list(dict.fromkeys(taken))
        count = max(1, round(run.data.evaluate * len(distinct)))
        if count >= len(distinct):
            raise UserError(f"data.evaluate={run.data.evaluate} would leave none of the {len(distinct)} rows to train on")
        held_out = pick(distinct, count, "evaluate")
        taken_out = set(held_out)
        taken = [row for row in taken if row not in taken_out]
    rows_R = np.array(taken, np.int64)
    set_aside = {"evaluation": len(held_out), "weight": prepared.rows - len(np.unique(rows_R)) - len(held_out)}
    set_aside["sample"] = sum(report.good for report in prepared.reports) - prepared.rows
    return rows_R, np.array(held_out, np.int64), {reason: count for reason, count in set_aside.items() if count}


def with_replay(run: Run, weights: list[float], rows: list[int]) -> list[float]:
    """The weights, with that of `data.replay`: so many of its rows (all, where it has fewer) for each row of the others."""
    if run.data.replay is None or weights[-1] == 1:
        return weights
    others = sum(weight * count for weight, count in zip(weights[:-1], rows[:-1], strict=True))
    return [*weights[:-1], min(1.0, run.data.replay_share * others / max(1, rows[-1]))]
