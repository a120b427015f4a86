"""Tokenised documents as flat arrays, made once and kept in a cache, with the report on what became of every row."""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from tunesmith.data.corpus import store
from tunesmith.data.corpus.blocks import Sources, blocks
from tunesmith.data.corpus.pieces import BATCH, CUT, DROPPED, FATES, KEPT, SPLIT, TOO_LONG, UNWRITABLE, Block, Part, Piece, Tokenise
from tunesmith.data.corpus.workers import Workers
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.overlength import OnOverlength
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import BadRow, FileReport, Sample
from tunesmith.data.sources import Decided, Reading, Tally, bad_rows, pick, where
from tunesmith.errors import UserError

LISTED = 20  # rows named in an error
NAMED = 1000  # rows named in the report as cut
HASHED = 1 << 16  # documents hashed at a time
TYPES: dict[str, type] = {
    "ids_N": np.uint32, "learned_N": np.bool_, "end_D": np.int64, "learned_D": np.int64, "unended_D": np.bool_, "row_D": np.int64,
    "file_R": np.uint32, "line_R": np.int64, "fate_R": np.uint8,
}  # fmt: skip

Rows = TypeVar("Rows", npt.NDArray[np.int64], npt.NDArray[np.uint32])
OnBadRow = Literal["error", "skip"]
Seen = Callable[[int, int], None]  # (done, of how many)


@dataclass(frozen=True)
class Documents:
    """D documents in flat arrays of N tokens: document d is `ids_N[begin_D[d]:end_D[d]]`, and came from a line of a file."""

    ids_N: npt.NDArray[np.uint32]
    learned_N: npt.NDArray[np.bool_]  # token n is a target; the first token of a document never is
    begin_D: npt.NDArray[np.int64]
    end_D: npt.NDArray[np.int64]
    learned_D: npt.NDArray[np.int64]  # how many of a document's tokens are targets
    file_D: npt.NDArray[np.uint32]
    line_D: npt.NDArray[np.int64]
    files: tuple[str, ...]
    labelled: bool = False  # a document ends with the labels of its learned tokens, one each, in order; they are not fed

    def __len__(self) -> int:
        return len(self.end_D)

    @cached_property
    def lengths_D(self) -> npt.NDArray[np.int64]:
        """Tokens that are fed."""
        return self.end_D - self.begin_D - (self.learned_D if self.labelled else 0)

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths_D.sum())

    @cached_property
    def learned_tokens(self) -> int:
        return int(self.learned_D.sum())

    def origin(self, document: int) -> str:
        """`file:line` of the row that the document was made of."""
        return f"{self.files[self.file_D[document]]}:{self.line_D[document]}"

    @cached_property
    def targets_M(self) -> npt.NDArray[np.int64]:
        """All M labels, document after document. Only where documents are labelled."""
        assert self.labelled
        first_D = self.end_D - self.learned_D
        before_D = self.learned_D.cumsum() - self.learned_D
        return self.ids_N[np.repeat(first_D - before_D, self.learned_D) + np.arange(self.learned_tokens)].astype(np.int64)

    @property
    def origins(self) -> list[str]:
        return [self.origin(document) for document in range(len(self))]

    def take(self, chosen_D: npt.NDArray[np.int64]) -> "Documents":
        """Some of the documents, in that order; a document may come twice. The tokens themselves are not copied."""
        places = (self.begin_D[chosen_D], self.end_D[chosen_D], self.learned_D[chosen_D])
        return Documents(self.ids_N, self.learned_N, *places, self.file_D[chosen_D], self.line_D[chosen_D], self.files, self.labelled)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tokens of all documents in order, which of them are learned, and where documents begin."""
        digest = hashlib.sha256()
        for array_N in (self.ids_N, self.learned_N):
            for first in range(0, len(self), HASHED):
                digest.update(self._joined(array_N, first, min(first + HASHED, len(self))).data)
        digest.update(np.concatenate([np.zeros(1, np.int64), self.lengths_D.cumsum()]).data)
        return digest.hexdigest()

    def _joined(self, array_N: npt.NDArray[Any], first: int, last: int) -> npt.NDArray[Any]:
        begin_D, end_D = self.begin_D[first:last], self.end_D[first:last]
        if np.array_equal(begin_D[1:], end_D[:-1]):
            return np.ascontiguousarray(array_N[begin_D[0] : end_D[-1]])
        return np.concatenate([array_N[begin:end] for begin, end in zip(begin_D.tolist(), end_D.tolist(), strict=True)])


def flat(
    ids_N: npt.NDArray[np.uint32],
    learned_N: npt.NDArray[np.bool_],
    end_D: npt.NDArray[np.int64],
    file_D: npt.NDArray[np.uint32],
    line_D: npt.NDArray[np.int64],
    files: Sequence[str],
    learned_D: npt.NDArray[np.int64] | None = None,
    labelled: bool = False,
) -> Documents:
    """Documents that stand one behind the other."""
    begin_D = np.concatenate([np.zeros(1, np.int64), end_D])[:-1]
    if learned_D is None:
        before_N1 = np.concatenate([np.zeros(1, np.int64), learned_N.cumsum()])
        learned_D = before_N1[end_D] - before_N1[begin_D]
    return Documents(ids_N, learned_N, begin_D, end_D, learned_D, file_D, line_D, tuple(files), labelled)


def weighed(rows_R: Rows, weight: float) -> Rows:
    """Every row as often as the whole part of `weight` says, and the fraction's share of them once more."""
    count = round((weight - int(weight)) * len(rows_R))
    more = rows_R[pick(range(len(rows_R)), count, "weight")] if count else rows_R[:0]
    return np.concatenate([np.tile(rows_R, int(weight)), more])


@dataclass
class Prepared:
    """The tokens of all usable rows (R of them), and what became of each row."""

    documents: Documents
    row_D: npt.NDArray[np.int64]
    unended_D: npt.NDArray[np.bool_]  # the document's last answer lost its end
    file_R: npt.NDArray[np.uint32]
    line_R: npt.NDArray[np.int64]
    fate_R: npt.NDArray[np.uint8]
    facts: dict[str, Any]  # reports, broken, reasons, notes, proved, texts, settings
    sources: Sources | None = None

    @property
    def rows(self) -> int:
        return len(self.fate_R)

    @property
    def is_text(self) -> bool:
        """Whether all rows are raw text."""
        return bool(self.rows) and self.facts["texts"] == self.rows

    @cached_property
    def reports(self) -> list[FileReport]:
        return reports_of(self.facts)

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Documents:
        """The documents of some rows, in that order; a row may come twice."""
        return self.documents if np.array_equal(rows, np.arange(self.rows)) else self.documents.take(self._documents_of(rows))

    def _documents_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        first_R = np.searchsorted(self.row_D, rows, "left")
        count_R = np.searchsorted(self.row_D, rows, "right") - first_R
        before_R = np.cumsum(count_R) - count_R
        return np.repeat(first_R - before_R, count_R) + np.arange(int(count_R.sum()))

    def refuse(self, on_bad_row: OnBadRow, max_length: int) -> None:
        """Raises UserError where a file cannot be read, rows are bad and not to be skipped, or nothing is left to learn from."""
        refused = [(int(self.fate_R[int(row)]), self._origin(int(row)), reason) for row, reason in self.facts["reasons"].items()]
        what = ["cannot be learned from by a head"] if self.documents.labelled else []
        problems = [*self.facts["broken"], *refusals(self.reports, refused, on_bad_row, max_length, *what)]
        if problems:
            raise UserError(*problems)
        if not self.rows:
            bad = sum(len(report.bad) for report in self.reports)
            names = ", ".join(self.sources.names) if self.sources else "the data"
            more = f" ({bad} bad rows; data.on_bad_row=error names them)" if bad else ""
            raise UserError(f"{names}: no usable rows{more}")
        if not len(self.documents):
            reasons = Counter(self.facts["reasons"].values())
            why = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons.most_common(3)) or "there are no rows"
            raise UserError(f"no row is left to learn from: {why}")

    def report(self, rows: npt.NDArray[np.int64], documents: Documents) -> dict[str, Any]:
        """`data.json` for these rows: rows = kept + cut + split + the number of dropped. Rows that cannot be read count as dropped."""
        fates_R = self.fate_R[rows]
        counts = np.bincount(fates_R, minlength=len(FATES))
        bad = [{"origin": where(row), "reason": row.reason} for report in self.reports for row in report.bad]
        lost = rows[fates_R >= DROPPED]
        dropped = bad + [{"origin": self._origin(row), "reason": self.facts["reasons"][str(row)]} for row in lost.tolist()]
        cut = rows[fates_R == CUT]
        return {
            "rows": len(rows) + len(bad),
            **{FATES[fate]: int(counts[fate]) for fate in (KEPT, CUT, SPLIT)},
            "dropped": dropped,
            "cut_origins": [self._origin(row) for row in cut[:NAMED].tolist()],
            "answers_without_end": int(self.unended_D[self._documents_of(rows)].sum()),
            **self.facts["rendering"],
            "documents": len(documents),
            "tokens": documents.tokens,
            "learned_tokens": documents.learned_tokens,
            "longest": int(documents.lengths_D.max(initial=0)),
            **self.facts["settings"],
            **self._label_counts(documents),
            "mask_sha256": documents.fingerprint,
            "files": [told_file(each) for each in self.reports],
        }

    def _label_counts(self, documents: Documents) -> dict[str, Any]:
        if not documents.labelled:
            return {}
        labels = self.facts["settings"]["labels"]
        return {"labels": dict(zip(labels, np.bincount(documents.targets_M, minlength=len(labels)).tolist(), strict=True))}

    def _origin(self, row: int) -> str:
        return f"{self.documents.files[self.file_R[row]]}:{self.line_R[row]}"


def refusals(
    reports: Sequence[FileReport],
    refused: Sequence[tuple[int, str, str]],
    on_bad_row: OnBadRow,
    max_length: int,
    unwritable: str = "cannot be written with this model's chat template",
) -> list[str]:
    """Why the run cannot go on: rows that cannot be read, and those of `refused` (fate, file:line, reason) that must not be left out.

    `unwritable`: what is wrong with rows that cannot be rendered.
    """
    problems = bad_rows(reports) if on_bad_row == "error" else []
    for fate, what, cure in (
        (UNWRITABLE, unwritable, "mend them, or leave them out with data.on_bad_row=skip"),
        (TOO_LONG, f"are longer than data.max_length {max_length}", "raise it, or set data.on_overlength to truncate or drop"),
    ):
        rows = [f"  {origin}: {reason}" for own, origin, reason in refused if own == fate]
        if rows and not (fate == UNWRITABLE and on_bad_row == "skip"):
            more = [f"  ... and {len(rows) - LISTED} more"] if len(rows) > LISTED else []
            problems += [f"{len(rows)} rows {what}:", *rows[:LISTED], *more, f"  {cure}"]
    return problems


def reports_of(facts: dict[str, Any]) -> list[FileReport]:
    return [FileReport(**(kept | {"bad": [BadRow(**row) for row in kept["bad"]]})) for kept in facts["reports"]]


def prepare(
    source: Sources | Sequence[Sample],
    renderer: Renderer | Labelled,
    *,
    max_length: int,
    on_overlength: OnOverlength = "truncate",
    cache: Path | None = None,
    workers: int = 0,
    progress: Seen | None = None,
) -> Prepared:
    """Read, render, fit and prove all rows, by `workers` processes beside this one; the second time, take them from `cache`.

    Rows that cannot be used are told by the result, which is kept too. `progress` gets (bytes done, bytes), or rows where
    samples are given. Raises ProofFailed where a mask is wrong, UserError where a file changes meanwhile.
    """
    sources = source if isinstance(source, Sources) else None
    key = _key(source, renderer, max_length, on_overlength) if cache is not None else ""
    if cache is not None and (kept := store.load(cache, key, TYPES)) is not None:
        if progress is not None:
            progress(1, 1)
        return _prepared(*kept, sources)
    writer = store.Writer(cache, key, TYPES)
    try:
        gathered = _gather(source, Tokenise(renderer, max_length, on_overlength), workers, writer, progress)
        if sources is not None:
            sources.unchanged()
        facts = gathered.facts() | {"settings": settings(renderer, max_length, on_overlength)}
        prepared = _prepared(writer.arrays(), facts, sources)
        writer.keep(facts)
    except BaseException:
        writer.drop()
        raise
    if cache is not None:
        store.trim(cache)
    return prepared


def settings(renderer: Renderer | Labelled, max_length: int, on_overlength: str) -> dict[str, Any]:
    """What of `data.json` says how rows were rendered; of labelled ones, which labels there are and what is fed."""
    labelled = {"labels": list(renderer.labels), "input": renderer.input} if renderer.labelled else {}
    return labelled | {
        "max_length": max_length,
        "on_overlength": on_overlength,
        "thinking": renderer.thinking,
        "date": renderer.date if renderer.prints_date else None,
        "template_sha256": hashlib.sha256(renderer.template.encode()).hexdigest() if renderer.template else None,
    }


@dataclass
class Gathered:
    """What pieces say of rows, added up."""

    reports: list[FileReport]
    broken: list[str]
    reasons: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    proved: Counter[str] = field(default_factory=Counter)
    tallies: dict[int, Tally] = field(default_factory=dict)
    texts: int = 0
    rows: int = 0

    def add(self, piece: Piece) -> None:
        self.reasons |= {str(self.rows + row): reason for row, reason in piece.reasons.items()}
        self.rows += len(piece.fate_R)
        self.notes += piece.notes
        self.proved.update(piece.proved)
        self.texts += piece.texts
        for number, count in piece.rows.items():
            self.reports[number].rows += count
            self.reports[number].good += count - len(piece.bad.get(number, ()))
        for number, bad in piece.bad.items():
            self.reports[number].bad += bad
        for number, tally in piece.tallies.items():
            self.tallies.setdefault(number, Tally()).add(tally)

    def facts(self) -> dict[str, Any]:
        reports = []
        for number, report in enumerate(self.reports):
            tally = self.tallies.get(number, Tally())
            reports.append(dataclasses.asdict(dataclasses.replace(report, warnings=report.warnings + tally.warnings(report.format))))
        return {
            "files": [report.file for report in self.reports],
            "reports": reports,
            "broken": self.broken,
            "reasons": self.reasons,
            "texts": self.texts,
            "rendering": {"notes": dict(sorted(self.notes.items())), "proof": dict(self.proved)},
        }


def _gather(source: Sources | Sequence[Sample], work: Tokenise, workers: int, writer: store.Writer, progress: Seen | None) -> Gathered:
    gathered = Gathered([], [])
    if isinstance(source, Sources):
        given, whole = blocks(source, gathered.reports, gathered.broken), source.bytes
    else:
        given, whole = _of_samples(source, gathered.reports), len(source)
    done = tokens = 0
    with Workers(work, workers) as pool:
        for piece in pool.map(given):
            end_D = tokens + piece.length_D.cumsum()
            tokens += int(piece.length_D.sum())
            writer.add(ids_N=piece.ids_N, learned_N=piece.learned_N, end_D=end_D, learned_D=piece.learned_D, unended_D=piece.unended_D)
            writer.add(row_D=gathered.rows + piece.row_D, file_R=piece.file_R, line_R=piece.line_R, fate_R=piece.fate_R)
            gathered.add(piece)
            done += piece.size
            if progress is not None:
                progress(min(done, whole), max(whole, 1))
    return gathered


def _of_samples(samples: Sequence[Sample], reports: list[FileReport]) -> Iterator[Block]:
    names = list(dict.fromkeys(sample.origin.rpartition(":")[0] for sample in samples))
    reports += [FileReport(name) for name in names]
    for first in range(0, len(samples), BATCH):
        parts = []
        for name, own in itertools.groupby(samples[first : first + BATCH], lambda sample: sample.origin.rpartition(":")[0]):
            rows, number = list(own), names.index(name)
            reports[number].rows += len(rows)
            reports[number].good += len(rows)
            parts.append(Part(number, Reading(), Decided("", Reading().columns, {}), rows))
        yield Block(parts, min(BATCH, len(samples) - first))


def _prepared(arrays: dict[str, Any], facts: dict[str, Any], sources: Sources | None) -> Prepared:
    row_D, file_R, line_R = arrays["row_D"], arrays["file_R"], arrays["line_R"]
    tokens = (arrays["ids_N"], arrays["learned_N"], arrays["end_D"])
    documents = flat(*tokens, file_R[row_D], line_R[row_D], facts["files"], arrays["learned_D"], "labels" in facts["settings"])
    return Prepared(documents, row_D, arrays["unended_D"], file_R, line_R, arrays["fate_R"], facts, sources)


def _key(source: Sources | Sequence[Sample], renderer: Renderer | Labelled, max_length: int, on_overlength: str) -> str:
    told = [store.code(), renderer.fingerprint, max_length, on_overlength]
    digest = hashlib.sha256(json.dumps(told).encode())
    if isinstance(source, Sources):
        digest.update(source.fingerprint().encode())
    else:
        for sample in source:
            row = [sample.origin, sample.messages, sample.tools, sample.text, sample.source, sample.label, sample.entities, sample.words]
            digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()[:32]


def told_file(report: FileReport) -> dict[str, Any]:
    return {
        "file": Path(report.file).name,
        "rows": report.rows,
        "good": report.good,
        "bad": [{"line": row.line, "reason": row.reason} for row in report.bad],
        "format": report.format,
        "encoding": report.encoding,
        "warnings": report.warnings,
    }
