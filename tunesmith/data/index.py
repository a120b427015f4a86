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

from tunesmith.data import store
from tunesmith.data.blocks import Sources, builtin_rows, first_rows, is_linewise
from tunesmith.data.columns import Columns
from tunesmith.data.documents import reports_of
from tunesmith.data.pieces import Block, Part, Picks
from tunesmith.data.read import Row, read_rows
from tunesmith.data.recognise import Unreadable, recognise
from tunesmith.data.resolve import File
from tunesmith.data.sample import BadRow, FileReport
from tunesmith.data.sources import DECIDED_FROM, Decided, Reading, decide, reading_of

CHUNK = 1 << 22  # bytes
NEWLINE = ord("\n")
TYPES: dict[str, type] = {"file_R": np.uint32, "begin_R": np.int64, "end_R": np.int64, "line_R": np.int64}


@dataclass(frozen=True, slots=True)
class Indexed:
    """One file: where its lines of JSON are, in which encoding, and how its rows are meant."""

    path: Path
    codec: str
    decided: Decided


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

    def block(self, rows: npt.NDArray[np.int64]) -> Block:
        """Some rows in that order, as a block to be worked on."""
        file_K = self.file_R[rows]
        borders = [0, *(np.flatnonzero(np.diff(file_K)) + 1).tolist(), len(rows)]
        parts = []
        for first, last in itertools.pairwise(borders):
            if first < last:
                parts.append(self._part(int(file_K[first]), rows[first:last]))
        return Block(parts, int((self.end_R[rows] - self.begin_R[rows]).sum()))

    def _part(self, number: int, rows: npt.NDArray[np.int64]) -> Part:
        file = self.files[number]
        assert file is not None
        places = (self.begin_R[rows], self.end_R[rows], self.line_R[rows])
        picks = Picks(file.path, self.sources.files[number].name, file.codec, *places)
        return Part(number, reading_of(self.sources.files[number], self.sources.reading), file.decided, picks)


def make(sources: Sources, folder: Path) -> Index:
    """The index of all files, kept in `folder` for the next time."""
    if (kept := store.load(folder, "index", TYPES)) is not None:
        arrays, told = kept
        return Index(sources, [_indexed(each) for each in told["files"]], reports_of(told), told["broken"], **arrays)
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
            return Indexed(file.path.absolute(), found.encoding, decided)
    return _spool(number, file, reading, report, writer, folder)


def line_places(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Begin and end (without the line end) of the lines that are not empty, and their numbers, some at a time."""
    offset = begin = 0
    line = 1
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            end_K = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE).astype(np.int64) + offset
            offset += len(chunk)
            if len(end_K):
                begin_K = np.concatenate([np.array([begin]), end_K[:-1] + 1])
                full = end_K - begin_K > 1  # a carriage return may stand alone
                yield begin_K[full], end_K[full], (line + np.arange(len(end_K)))[full]
                begin, line = int(end_K[-1]) + 1, line + len(end_K)
    if offset > begin + 1:
        yield np.array([begin]), np.array([offset]), np.array([line])


def _spool(number: int, file: File, reading: Reading, report: FileReport, writer: store.Writer, folder: Path) -> Indexed:
    """Write a file's rows as lines of JSON. Rows that cannot be read go into the report."""
    rows = iter(
        read_rows(file.path, file.name, report, encoding=reading.encoding, documents=reading.documents)
        if file.path is not None
        else builtin_rows(file)
    )
    target = folder / f"rows-{number}.jsonl"
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    head: list[Row] = []
    begins, ends, lines, at = [], [], [], 0
    with open(aside, "wb") as spool:
        for row in rows:
            if isinstance(row, BadRow):
                report.rows += 1
                report.bad.append(row)
                continue
            if len(head) < DECIDED_FROM:
                head.append(row)
            text = json.dumps(row.values, ensure_ascii=False, default=str).encode("utf-8", errors="replace")
            spool.write(text + b"\n")
            begins.append(at)
            ends.append(at + len(text))
            lines.append(row.line)
            at += len(text) + 1
            if len(begins) == CHUNK // 64:
                writer.add(file_R=np.full(len(begins), number), begin_R=np.array(begins), end_R=np.array(ends), line_R=np.array(lines))
                begins, ends, lines = [], [], []
    writer.add(file_R=np.full(len(begins), number), begin_R=np.array(begins), end_R=np.array(ends), line_R=np.array(lines))
    os.replace(aside, target)
    report.encoding = report.encoding or "utf-8"
    return Indexed(target, "utf-8", decide(head, reading, report))


def _told(file: Indexed | None) -> dict[str, Any] | None:
    if file is None:
        return None
    decided = file.decided
    columns = {"columns": decided.columns.columns, "template": list(decided.columns.template)}
    return {"path": str(file.path), "codec": file.codec, "format": decided.format, "absent": decided.absent} | columns


def _indexed(told: dict[str, Any] | None) -> Indexed | None:
    if told is None:
        return None
    columns = Columns(told["columns"], tuple(told["template"]))
    return Indexed(Path(told["path"]), told["codec"], Decided(told["format"], columns, told["absent"]))
