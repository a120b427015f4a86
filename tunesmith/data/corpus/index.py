"""Where each row of large files stands, so that rows can be read in any order without reading what is before them.

Lines of JSON are indexed where they are. Files of other kinds are first written as lines of JSON into the cache, which
takes one pass. Memory does not grow with the file: the index is mapped from the disk. R: rows.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.data.columns import Columns
from tunesmith.data.corpus import store
from tunesmith.data.corpus.blocks import Sources, builtin_rows, first_rows, is_linewise
from tunesmith.data.corpus.documents import reports_of
from tunesmith.data.corpus.pieces import CHANGED, Block, Part, Picks, Stamp, stamp_of
from tunesmith.data.files.read import Row, read_rows
from tunesmith.data.files.recognise import Unreadable, recognise
from tunesmith.data.names.resolve import File
from tunesmith.data.sample import BadRow, FileReport
from tunesmith.data.sources import DECIDED_FROM, Decided, Reading, decide, reading_of

CHUNK = 1 << 22  # bytes
SPOOLED = 1 << 10  # rows written at once
NEWLINE, BLANK = ord("\n"), ord(" ")  # what is no greater than a blank begins a line that may be blank
TYPES: dict[str, type] = {"file_R": np.uint32, "begin_R": np.int64, "end_R": np.int64, "line_R": np.int64}


@dataclass(frozen=True, slots=True)
class Indexed:
    """One file: where its lines of JSON are, in which encoding, and how its rows are meant."""

    path: Path
    codec: str
    decided: Decided
    ours: bool  # written from a file of another kind
    stamp: Stamp  # of `path`


@dataclass(frozen=True)
class Index:
    sources: Sources
    files: list[Indexed | None]  # None: the file cannot be read
    reports: list[FileReport]
    broken: list[str]
    file_R: npt.NDArray[np.uint32]
    begin_R: npt.NDArray[np.int64]
    end_R: npt.NDArray[np.int64]
    line_R: npt.NDArray[np.int64]

    @property
    def bytes(self) -> int:
        return int((self.end_R - self.begin_R).sum())

    def block(self, rows: npt.NDArray[np.int64], again: npt.NDArray[np.bool_]) -> Block:
        """Some rows in that order, as a block to be worked on; those that came before are marked."""
        place_K = np.lexsort((self.begin_R[rows], self.file_R[rows]))  # each file is opened once and read from front to back
        borders = (np.flatnonzero(np.diff(self.file_R[rows[place_K]])) + 1).tolist()
        parts = [self._part(rows[place_P], again[place_P], place_P) for place_P in np.split(place_K, borders) if len(place_P)]
        return Block(parts, int((self.end_R[rows] - self.begin_R[rows]).sum()))

    def _part(self, rows: npt.NDArray[np.int64], again: npt.NDArray[np.bool_], place_P: npt.NDArray[np.int64]) -> Part:
        """P rows of one file, and their places in the block."""
        number = int(self.file_R[rows[0]])
        file = self.files[number]
        assert file is not None
        places = (self.begin_R[rows], self.end_R[rows], self.line_R[rows], again, place_P)
        picks = Picks(file.path, self.sources.files[number].name, file.codec, file.stamp, file.ours, *places)
        return Part(number, reading_of(self.sources.files[number], self.sources.reading), file.decided, picks)


def make(sources: Sources, folder: Path) -> Index:
    """The index of all files, kept in `folder` for the next time."""
    if (kept := store.load(folder, "index", TYPES)) is not None:
        arrays, told = kept
        found = [_indexed(number, each, sources, folder) for number, each in enumerate(told["files"])]
        if all(file is None or file.stamp is not None for file in found):  # what we wrote is still there, and whole
            return Index(sources, found, reports_of(told), told["broken"], **arrays)
    writer = store.Writer(folder, "index", TYPES)
    files: list[Indexed | None] = []
    reports = [FileReport(file.name) for file in sources.files]
    broken: list[str] = []
    try:
        for number, (file, report) in enumerate(zip(sources.files, reports, strict=True)):
            try:
                files.append(_index(number, file, reading_of(file, sources.reading), report, writer, folder))
            except Unreadable as error:
                report.encoding = report.encoding or error.encoding
                broken.append(str(error))
                files.append(None)
            except UnicodeError:
                broken.append(f"{file.name}: {CHANGED}")
                files.append(None)
        sources.unchanged()
        arrays = writer.arrays()
        writer.keep(
            {"files": [_told(file) for file in files], "reports": [dataclasses.asdict(report) for report in reports], "broken": broken}
        )
    except BaseException:
        writer.drop()
        raise
    return Index(sources, files, reports, broken, **arrays)


def _index(number: int, file: File, reading: Reading, report: FileReport, writer: store.Writer, folder: Path) -> Indexed:
    report.warnings += file.notes
    if file.path is not None:
        found = recognise(file.path, file.name, reading.encoding)
        if is_linewise(found):
            report.encoding = found.called
            report.warnings += found.warnings
            decided = decide(first_rows(file.path, file.name, found), reading, report)
            for begin_K, end_K, line_K in line_places(file.path):
                writer.add(file_R=np.full(len(begin_K), number), begin_R=begin_K, end_R=end_K, line_R=line_K)
            return Indexed(file.path, found.encoding, decided, False, stamp_of(file.path))
    return _spool(number, file, reading, report, writer, folder)


def line_places(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Begin and end (without the line end) of the lines that are not blank, and their numbers, some at a time."""
    offset, line = 0, 1
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
            bytes_C = np.frombuffer(chunk, np.uint8)
            end_K = np.flatnonzero(bytes_C == NEWLINE)
            if not chunk.endswith(b"\n"):
                end_K = np.append(end_K, len(chunk))
            begin_K = np.concatenate([np.zeros(1, np.int64), end_K[:-1] + 1])
            full_K = begin_K < end_K
            for at in np.flatnonzero(full_K & (bytes_C[np.minimum(begin_K, len(chunk) - 1)] <= BLANK)).tolist():
                full_K[at] = bool(chunk[begin_K[at] : end_K[at]].strip())
            yield begin_K[full_K] + offset, end_K[full_K] + offset, (line + np.arange(len(end_K)))[full_K]
            offset, line = offset + len(chunk), line + len(end_K)


def _spool(number: int, file: File, reading: Reading, report: FileReport, writer: store.Writer, folder: Path) -> Indexed:
    """Write a file's rows as lines of JSON. Rows that cannot be read go into the report."""
    rows = iter(
        read_rows(file.path, file.name, report, encoding=reading.encoding, documents=reading.documents)
        if file.path is not None
        else builtin_rows(file)
    )
    target = folder / _spooled(number)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    head: list[Row | BadRow] = []
    try:
        with open(aside, "wb") as spool:
            at = 0
            while some := list(itertools.islice(rows, SPOOLED)):
                head += some[: DECIDED_FROM - len(head)]
                good = [row for row in some if isinstance(row, Row)]
                bad = [row for row in some if isinstance(row, BadRow)]
                report.rows += len(bad)
                report.bad += bad
                texts = [_as_json(row) for row in good]
                spool.writelines(texts)
                end_K = at + np.cumsum(np.array([len(text) for text in texts], np.int64))
                begin_K = np.concatenate([np.array([at]), end_K])[:-1]
                line_K = np.array([row.line for row in good], np.int64)
                writer.add(file_R=np.full(len(good), number), begin_R=begin_K, end_R=end_K, line_R=line_K)
                at = int(end_K[-1]) if len(end_K) else at
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    if not head:
        raise Unreadable(file.name, 0, "no rows")
    decided = decide([row for row in head if isinstance(row, Row)], reading, report)
    report.encoding = report.encoding or "utf-8"
    return Indexed(target, "utf-8", decided, True, stamp_of(target))


def _as_json(row: Row) -> bytes:
    try:
        return json.dumps(row.values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a character
        return json.dumps(row.values).encode() + b"\n"


def _told(file: Indexed | None) -> dict[str, Any] | None:
    """Where a file of the user's stands is not kept: the same data may be found elsewhere the next time."""
    if file is None:
        return None
    decided = file.decided
    columns = {"columns": decided.columns.columns, "template": list(decided.columns.template)}
    size = file.stamp[0] if file.stamp else None
    return {"ours": file.ours, "size": size, "codec": file.codec, "format": decided.format, "absent": decided.absent} | columns


def _indexed(number: int, told: dict[str, Any] | None, sources: Sources, folder: Path) -> Indexed | None:
    if told is None:
        return None
    path = folder / _spooled(number) if told["ours"] else sources.files[number].path
    assert path is not None
    stamp = stamp_of(path)
    columns = Columns(told["columns"], tuple(told["template"]))
    decided = Decided(told["format"], columns, told["absent"])
    return Indexed(path, told["codec"], decided, told["ours"], stamp if stamp and stamp[0] == told["size"] else None)


def _spooled(number: int) -> str:
    return f"rows-{number}.jsonl"
