"""The tokens that a run learns from and those it is evaluated on: sources weighted, rows held out, replay mixed in."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith import hardware
from tunesmith.config import Run
from tunesmith.data.corpus.blocks import Sources, open_sources
from tunesmith.data.corpus.documents import Documents, Prepared, Seen, prepare, weighed
from tunesmith.data.corpus.pieces import Tokenise
from tunesmith.data.corpus.stream import Chunks, Stream, documents_of, open_chunks
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sources import pick, understand
from tunesmith.errors import UserError
from tunesmith.models.source import cache_folder

Tell = Callable[[str], None]
Named = tuple[Sources, list[float]]  # what `training` finds, once: a hub is asked for it
LARGE = 4 << 20  # bytes of data from which on starting processes pays
EVERY = 10.0  # seconds between two sentences on how far it is
STREAMED = 64 << 20  # bytes of data that are not waited for where train.steps is given


@dataclass(frozen=True)
class Corpus:
    documents: Documents
    evaluation: Documents | None
    report: dict[str, Any]  # data.json
    is_text: bool
    chunks: Chunks | None = None  # where the rest is still to be tokenised: `documents` are the first of them
    key: str = ""  # of the chunks: data, settings and order


def stream(run: Run, named: Named, labelled: bool = False) -> tuple[bool, str]:
    """Whether the run begins before all is tokenised, and why. Raises UserError where that is asked for and cannot be."""
    sources, _ = named
    hindrances = []
    if any(sources.wanted):
        hindrances.append("a sample (PATH#N) is taken among all rows")
    if isinstance(run.data.evaluate, float):
        hindrances.append("a fraction held out (data.evaluate) is taken among all rows; name a file")
    if labelled:
        hindrances.append("the labels of a head are looked up in all rows")
    if run.data.stream is True:
        hindrances += ["how long an epoch is is not known: give train.steps"] if run.train.steps is None else []
        if hindrances:
            raise UserError(*(f"data.stream: {hindrance}" for hindrance in hindrances))
        return True, ""
    if run.train.steps is None or sources.bytes < STREAMED or hindrances:
        return False, "everything is tokenised first"
    return True, f"{sources.bytes / 1e6:,.0f} MB of data and train.steps is given: tokenised ahead of the run"


def open_stream(run: Run, named: Named, renderer: Renderer, tell: Tell = lambda sentence: None) -> Corpus:
    """Only the first rows are tokenised. Raises UserError."""
    sources, weights = named
    work = Tokenise(renderer, run.data.max_length, run.data.on_overlength)
    chunks, key = open_chunks(
        sources,
        lambda rows: with_replay(run, sources, weights, rows),
        work,
        cache_folder() / "tokens",
        seed=run.train.seed,
        on_bad_row=run.data.on_bad_row,
        workers=workers(run, sources.bytes),
        beside=not run.model.device.startswith("cpu"),
    )
    if not len(chunks):
        raise UserError(f"{', '.join(sources.names)}: no usable rows")
    refuse_judged(sources, {report.format for report in chunks.index.reports})
    chunks.wait_for(0)
    begun = Stream(chunks, 1, 1, run.train.seed, key=key)
    evaluation, told = _evaluation(run, renderer, sources, tell)
    names = [report.file for report in chunks.index.reports]
    return Corpus(documents_of(chunks.piece(0), names), evaluation, begun.report() | told, chunks.is_text(), chunks, key)


def read(run: Run, named: Named, renderer: Renderer, tell: Tell = lambda sentence: None) -> Corpus:
    """Raises UserError with everything in the data that cannot be used, ProofFailed where a mask is wrong."""
    sources, weights = named
    prepared = _prepared(run, renderer, sources, tell)
    rows, held_out, set_aside = chosen(run, prepared, weights)
    documents = prepared.of_rows(rows)
    if not len(documents):
        where = "held out or left out" if set_aside else "dropped"
        raise UserError(f"no row is left to learn from: all that can be learned are {where} (data.evaluate, weights)")
    report = prepared.report(np.unique(rows), documents)
    evaluation, told = _held_out(run, prepared, held_out) if len(held_out) else _evaluation(run, renderer, sources, tell)
    report |= told
    report["rows_read"] = report["rows"] + sum(set_aside.values())
    report["set_aside"] = set_aside
    return Corpus(documents, evaluation, report, prepared.is_text)


def _evaluation(run: Run, renderer: Renderer, sources: Sources, tell: Tell) -> tuple[Documents | None, dict[str, Any]]:
    """The documents of the file that `data.evaluate` names, where it names one."""
    if not isinstance(run.data.evaluate, str):
        return None, {}
    prepared = _prepared(run, renderer, open_sources([run.data.evaluate], sources.reading, run.data.info), tell)
    return _held_out(run, prepared, np.arange(prepared.rows))


def _held_out(run: Run, prepared: Prepared, rows: npt.NDArray[np.int64]) -> tuple[Documents, dict[str, Any]]:
    documents = prepared.of_rows(rows)
    if not len(documents):
        raise UserError(f"data.evaluate={run.data.evaluate}: no row is left to evaluate on")
    figures = {"rows": len(rows), "documents": len(documents), "tokens": documents.tokens, "learned_tokens": documents.learned_tokens}
    return documents, {"evaluation": figures | {"mask_sha256": documents.fingerprint}}


def training(run: Run) -> Named:
    """All sources to learn from, that of `data.replay` last, and their weights; that of replay is known once rows are counted."""
    train, data = run.data.train, run.data
    named = [(train, 1.0)] if isinstance(train, str) else [(source.source, source.weight) for source in train]
    if data.replay is not None:
        named.append((data.replay, 1.0))
    reading = understand(**data.reading)
    return open_sources([name for name, _ in named], reading, data.info), [weight for _, weight in named]


def _prepared(run: Run, renderer: Renderer, sources: Sources, tell: Tell) -> Prepared:
    prepared = prepare(
        sources,
        renderer,
        max_length=run.data.max_length,
        on_overlength=run.data.on_overlength,
        cache=cache_folder() / "tokens",
        workers=workers(run, sources.bytes),
        progress=how_far(tell),
    )
    refuse_judged(sources, {report.format for report in prepared.reports})
    prepared.refuse(run.data.on_bad_row, run.data.max_length)
    return prepared


def how_far(tell: Tell) -> Seen:
    """Tells now and then how many megabytes are tokenised and how long the rest will take."""
    begun = last = time.monotonic()

    def seen(done: int, whole: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY and 0 < done < whole:
            last = now
            left = (now - begun) * (whole - done) / done
            spelled = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
            tell(f"tokenised {done / 1e6:,.0f} of {whole / 1e6:,.0f} MB, about {spelled} left")

    return seen


def refuse_judged(sources: Sources, formats: set[str]) -> None:
    """Raises UserError for rows that hold answers which must not be imitated."""
    if "preference" in formats:
        raise UserError(
            f"{', '.join(sources.names)}: preference pairs or judged answers; they are read and checked, but training learns answers only",
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
    weights = with_replay(run, prepared.sources, weights, np.bincount(source_R, minlength=len(weights)).tolist())
    taken = [weighed(np.flatnonzero(source_R == number), weight) for number, weight in enumerate(weights)]
    rows_R = np.concatenate([np.zeros(0, np.int64), *taken])
    held_out_R = np.zeros(0, np.int64)
    if isinstance(run.data.evaluate, float):
        distinct_R = np.unique(rows_R)
        count = max(1, round(run.data.evaluate * len(distinct_R)))
        if count >= len(distinct_R):
            raise UserError(f"data.evaluate={run.data.evaluate} would leave none of the {len(distinct_R)} rows to train on")
        held_out_R = distinct_R[pick(range(len(distinct_R)), count, "evaluate")]
        rows_R = rows_R[~np.isin(rows_R, held_out_R)]
    set_aside = {"evaluation": len(held_out_R), "weight": prepared.rows - len(np.unique(rows_R)) - len(held_out_R)}
    set_aside["sample"] = sum(report.good for report in prepared.reports) - prepared.rows
    return rows_R, held_out_R, {reason: count for reason, count in set_aside.items() if count}


def with_replay(run: Run, sources: Sources, weights: list[float], rows: list[int]) -> list[float]:
    """The weights, with that of `data.replay`: so many of its rows (all, where it has fewer) for each row of the others.

    Where its name says how many rows are taken, it is all of those.
    """
    if run.data.replay is None or sources.wanted[-1] is not None:
        return weights
    others = sum(weight * count for weight, count in zip(weights[:-1], rows[:-1], strict=True))
    return [*weights[:-1], min(1.0, run.data.replay_share * others / max(1, rows[-1]))]
