"""Tokenised documents as flat arrays, made once and kept in a cache, with the report on what became of every row."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tunesmith.data.overlength import OnOverlength, fit
from tunesmith.data.proof import prove
from tunesmith.data.render import Document, Renderer
from tunesmith.data.sample import RowError, Sample
from tunesmith.errors import UserError

LAYOUT = 1  # of the cache's files: raise it when they change
BATCH = 256  # rows tokenised together
LISTED = 20  # rows named in an error


@dataclass(frozen=True)
class Documents:
    """D documents of N tokens in all: document d is `ids_N[starts_D1[d]:starts_D1[d + 1]]`."""

    ids_N: npt.NDArray[np.uint32]
    learned_N: npt.NDArray[np.bool_]  # token n is a target; the first token of a document never is
    starts_D1: npt.NDArray[np.int64]
    origins: list[str]

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def lengths_D(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts_D1)

    @property
    def tokens(self) -> int:
        return len(self.ids_N)

    @cached_property
    def learned_tokens(self) -> int:
        return int(self.learned_N.sum())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, what is learned, and where documents begin."""
        digest = hashlib.sha256()
        for array in (self.ids_N, self.learned_N, self.starts_D1):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def prepare(
    samples: Sequence[Sample],
    renderer: Renderer,
    *,
    max_length: int,
    on_overlength: OnOverlength = "truncate",
    on_bad_row: Literal["error", "skip"] = "error",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Documents, dict[str, Any]]:
    """Render, fit and prove all samples; the second time, load them from `cache` (a folder).

    The report is `data.json`: rows = kept + cut + split + the number of dropped. `progress` gets (rows done, rows).
    Raises UserError with the rows that the template cannot write or that are too long, ProofFailed where a mask is wrong.
    """
    key = _key(samples, renderer, max_length, on_overlength, on_bad_row)
    if cache is not None and (found := _load(cache, key)) is not None:
        if progress is not None:
            progress(len(samples), len(samples))
        return found
    documents, report = _render(samples, renderer, max_length, on_overlength, on_bad_row, progress)
    report |= {
        "documents": len(documents),
        "tokens": documents.tokens,
        "learned_tokens": documents.learned_tokens,
        "longest": int(documents.lengths_D.max()),
        "max_length": max_length,
        "on_overlength": on_overlength,
        "thinking": renderer.thinking,
        "date": renderer.date if renderer.prints_date else None,
        "template_sha256": hashlib.sha256(renderer.template.encode()).hexdigest() if renderer.template else None,
        "mask_sha256": documents.fingerprint,
    }
    if cache is not None:
        _save(cache, key, documents, report)
    return documents, report


@dataclass(slots=True)
class _Fates:
    """What became of the rows; those of `bad` are in `dropped` too."""

    counts: Counter[str] = field(default_factory=Counter)
    dropped: list[dict[str, str]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)  # the template cannot write them
    long: list[str] = field(default_factory=list)  # `error`, or `split` of a conversation


def _render(
    samples: Sequence[Sample],
    renderer: Renderer,
    max_length: int,
    on_overlength: OnOverlength,
    on_bad_row: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[Documents, dict[str, Any]]:
    """Batch by batch into flat arrays: a token takes 4 bytes there, 36 in a list."""
    notes_before = renderer.notes.copy()
    fates, flat, proved = _Fates(), [], Counter[str]()
    for first in range(0, len(samples), BATCH):
        batch = samples[first : first + BATCH]
        found = renderer.documents_of(batch)
        documents = [
            document
            for sample, these in zip(batch, found, strict=True)
            for document in _fit(sample, these, renderer, max_length, on_overlength, fates)
        ]
        proved.update(dataclasses.asdict(prove(documents, renderer)))
        proved["answers_without_end"] += sum(document.cut for document in documents)
        flat.append(_flatten(documents))
        if progress is not None:
            progress(min(first + BATCH, len(samples)), len(samples))
    _refuse(fates.bad if on_bad_row == "error" else [], fates.long, max_length)
    if not any(len(documents) for documents in flat):
        reasons = Counter(row["reason"] for row in fates.dropped)
        why = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons.most_common(3)) or "there are no rows"
        raise UserError(f"no row is left to learn from: {why}")
    counts = {fate: fates.counts[fate] for fate in ("kept", "cut", "split")}
    assert sum(counts.values()) + len(fates.dropped) == len(samples)
    report = {"rows": len(samples), **counts, "dropped": fates.dropped, "cut_origins": fates.cut}
    report |= {"answers_without_end": proved.pop("answers_without_end"), "notes": dict(sorted((renderer.notes - notes_before).items()))}
    return _together(flat), report | {"proof": dict(proved)}


def _fit(
    sample: Sample, found: list[Document] | RowError, renderer: Renderer, max_length: int, on_overlength: OnOverlength, fates: _Fates
) -> list[Document]:
    if isinstance(found, RowError):
        fates.bad.append(f"{sample.origin}: {found}")
        fates.dropped.append({"origin": sample.origin, "reason": str(found)})
        return []
    notes = renderer.notes.copy()  # rendering a row again to fit it must not count it again
    fitted = fit(sample, found, renderer, max_length=max_length, on_overlength=on_overlength)
    renderer.notes = notes
    if fitted.fate == "refused":
        fates.long.append(f"{sample.origin}: {fitted.reason}")
    elif fitted.fate == "dropped":
        fates.dropped.append({"origin": sample.origin, "reason": fitted.reason})
    else:
        fates.counts[fitted.fate] += 1
        fates.cut += [sample.origin] if fitted.fate == "cut" else []
    return fitted.documents


def _refuse(bad: list[str], long: list[str], max_length: int) -> None:
    problems = []
    for rows, what, cure in (
        (bad, "rows cannot be written with this model's chat template", "mend them, or leave them out with data.on_bad_row=skip"),
        (long, f"rows are longer than data.max_length {max_length}", "raise it, or set data.on_overlength to truncate or drop"),
    ):
        if rows:
            problems += [f"{len(rows)} {what}:", *(f"  {row}" for row in rows[:LISTED])]
            problems += [f"  ... and {len(rows) - LISTED} more"] if len(rows) > LISTED else []
            problems.append(f"  {cure}")
    if problems:
        raise UserError(*problems)


def _flatten(documents: Sequence[Document]) -> Documents:
    lengths_D = np.array([len(document.ids) for document in documents], np.int64)
    starts_D1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_D)])
    ids_N = np.empty(starts_D1[-1], np.uint32)
    learned_N = np.zeros(starts_D1[-1], np.bool_)
    for document, start in zip(documents, starts_D1, strict=False):
        ids_N[start : start + len(document.ids)] = document.ids
        for begin, end in document.spans:
            learned_N[start + begin : start + end] = True
    return Documents(ids_N, learned_N, starts_D1, [document.origin for document in documents])


def _together(flat: Sequence[Documents]) -> Documents:
    before_B = np.cumsum([0, *(documents.tokens for documents in flat)])
    starts = [documents.starts_D1[:-1] + before for documents, before in zip(flat, before_B, strict=False)]
    return Documents(
        np.concatenate([documents.ids_N for documents in flat]),
        np.concatenate([documents.learned_N for documents in flat]),
        np.concatenate([*starts, before_B[-1:]]),
        [origin for documents in flat for origin in documents.origins],
    )


# --- the cache: two files beside each other, the JSON written last, so that it stands only where both are whole ---


def _key(samples: Sequence[Sample], renderer: Renderer, max_length: int, on_overlength: str, on_bad_row: str) -> str:
    digest = hashlib.sha256(json.dumps([LAYOUT, renderer.fingerprint, max_length, on_overlength, on_bad_row]).encode())
    for sample in samples:
        row = [sample.origin, sample.messages, sample.tools, sample.text]
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()[:32]


def _load(cache: Path, key: str) -> tuple[Documents, dict[str, Any]] | None:
    from safetensors.numpy import load_file

    try:
        kept = json.loads((cache / f"{key}.json").read_text(encoding="utf-8"))
        arrays = load_file(cache / f"{key}.safetensors")
        documents = Documents(arrays["ids_N"], arrays["learned_N"], arrays["starts_D1"], kept["origins"])
    except Exception:  # absent, or not as we wrote it: it is made anew
        return None
    return (documents, kept["report"]) if documents.fingerprint == kept["report"]["mask_sha256"] else None


def _save(cache: Path, key: str, documents: Documents, report: dict[str, Any]) -> None:
    """Write both files aside and rename them. A cache that cannot be written is no reason to stop."""
    from safetensors.numpy import save

    arrays = {"ids_N": documents.ids_N, "learned_N": documents.learned_N, "starts_D1": documents.starts_D1}
    text = json.dumps({"report": report, "origins": documents.origins}, ensure_ascii=False)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".safetensors", save(arrays)), (".json", text.encode())):
            aside = cache / f".{key}{suffix}.{os.getpid()}"
            aside.write_bytes(content)
            os.replace(aside, cache / f"{key}{suffix}")
    except OSError:
        return
