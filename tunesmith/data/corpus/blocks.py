"""All training sources as blocks of rows, each large enough to be worth a process's while and small enough to wait for.

Lines of JSON are handed over as places in their file: what is read here is only where lines end.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.corpus.pieces import CHANGED, Block, Lines, Part, Stamp, stamp_of
from tunesmith.data.files.json_values import Decoder
from tunesmith.data.files.read import Row, read_rows, row_of_line
from tunesmith.data.files.recognise import Found, Unreadable, recognise
from tunesmith.data.names.builtin import BUILTIN
from tunesmith.data.names.resolve import File, Resolved, resolve
from tunesmith.data.sample import BadRow, FileReport, Sample
from tunesmith.data.sources import DECIDED_FROM, Decided, Reading, decide, pick, read_samples, reading_of, set_apart
from tunesmith.errors import UserError

BLOCK = 1 << 20  # bytes or characters of a block
ROW = 64  # characters that a row counts beside its texts
# Encodings in which the byte of a line end is never a part of another character.
LINEWISE: tuple[str, ...] = ("utf-8", "utf-8-sig", "ascii", "cp1251", "cp1252", "iso8859-1")
LINEWISE += ("gb18030", "gbk", "gb2312", "cp950", "big5hkscs", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")

Rows = Sequence[Row | BadRow | Sample] | Lines


@dataclass(slots=True)
class Sources:
    """Files to learn from, in order; `source_F` says to which of the named sources each belongs."""

    names: list[str]
    reading: Reading
    files: list[File] = field(default_factory=list)
    source_F: list[int] = field(default_factory=list)
    wanted: list[int | None] = field(default_factory=list)  # rows of each source, None for all
    stamps: list[Stamp] = field(default_factory=list)  # of the files when they were opened

    @property
    def bytes(self) -> int:
        """Size of all files on the disk when they were opened."""
        return sum(stamp[0] for stamp in self.stamps if stamp is not None)

    @property
    def suffixes(self) -> set[str]:
        return {file.path.suffix.lower() for file in self.files if file.path is not None}

    def unchanged(self) -> None:
        """Raises UserError with every file that is no longer what was opened."""
        changed = [file.name for file, stamp in zip(self.files, self.stamps, strict=True) if stamp_of(file.path) != stamp]
        if changed:
            raise UserError(*(f"{name}: {CHANGED}" for name in changed))

    def fingerprint(self) -> str:
        """SHA-256 over the files' names and contents and how they are understood."""
        digest = hashlib.sha256(repr((self.reading, self.source_F, self.wanted)).encode())
        for file in self.files:
            digest.update(repr((file.name, file.adapt, file.documents)).encode() + _content(file))
        return digest.hexdigest()


def open_sources(names: Sequence[str], reading: Reading, info: str = "auto") -> Sources:
    """Raises UserError with every name that means nothing, at once."""
    found, problems = Sources(list(names), reading), list[str]()
    for number, name in enumerate(names):
        try:
            resolved = resolve(name, info) if name else Resolved(())
        except UserError as error:
            problems += error.problems
            continue
        found.files += resolved.files
        found.source_F += [number] * len(resolved.files)
        found.wanted.append(resolved.rows)
    if not names or not all(names):
        problems.append("no training data: name a file, a folder, a glob or builtin:NAME (--data, or data.train)")
    if problems:
        raise UserError(*problems)
    found.stamps = [stamp_of(file.path) for file in found.files]
    return found


def blocks(sources: Sources, reports: list[FileReport], broken: list[str]) -> Iterator[Block]:
    """Blocks of about `BLOCK` characters in the order of the files.

    Fills a report for each file with what reading tells; rows are counted by whoever works on the parts, but for those
    of a sample. A file that cannot be read, or not past a place, is named in `broken`.
    """
    reports += [FileReport(file.name) for file in sources.files]
    block: list[Part] = []
    size = 0
    for part, length in _parts(sources, reports, broken):
        block.append(part)
        size += length
        if size >= BLOCK:
            yield Block(block, size)
            block, size = [], 0
    if block:
        yield Block(block, size)


def _parts(sources: Sources, reports: list[FileReport], broken: list[str]) -> Iterator[tuple[Part, int]]:
    for source, wanted in enumerate(sources.wanted):
        numbers = [number for number, own in enumerate(sources.source_F) if own == source]
        if wanted is not None:
            yield from _sampled(sources, numbers, wanted, reports, broken)
            continue
        for number in numbers:
            file, report = sources.files[number], reports[number]
            try:
                yield from _of_file(number, file, reading_of(file, sources.reading), report)
            except Unreadable as error:
                report.encoding = report.encoding or error.encoding
                broken.append(str(error))
            except (OSError, UnicodeError) as error:
                broken.append(f"{file.name}: {CHANGED} ({error})")


def _of_file(number: int, file: File, reading: Reading, report: FileReport) -> Iterator[tuple[Part, int]]:
    report.warnings += file.notes
    if file.path is None:
        report.encoding = "utf-8"
        rows: Iterable[Row | BadRow] = builtin_rows(file)
    else:
        found = recognise(file.path, file.name, reading.encoding)
        if is_linewise(found):
            report.encoding = found.called
            report.warnings += found.warnings
            yield from _of_lines(number, file, found, reading, report)
            return
        rows = read_rows(file.path, file.name, report, encoding=reading.encoding, documents=reading.documents)
    yield from _of_rows(number, file.name, iter(rows), reading, report)


def is_linewise(found: Found) -> bool:
    """Whether each line of the file is a row that can be read by itself."""
    return found.kind == "jsonl" and not found.gzip and found.newline == "\n" and found.encoding in LINEWISE


def builtin_rows(file: File) -> list[Row | BadRow]:
    made = BUILTIN[file.name.removeprefix("builtin:")]()
    return [Row(file.name, line, values) for line, values in enumerate(made, start=1)]


def _of_lines(number: int, file: File, found: Found, reading: Reading, report: FileReport) -> Iterator[tuple[Part, int]]:
    assert file.path is not None
    decided = decide(first_rows(file.path, file.name, found), reading, report)
    for begin, end, first in line_ranges(file.path):
        yield Part(number, reading, decided, Lines(file.path, file.name, found.encoding, begin, end, first)), end - begin


def first_rows(path: Path, name: str, found: Found) -> list[Row]:
    """The usable ones of the first rows of JSON Lines, by which the format is decided. Raises Unreadable where there is no row."""
    decoder, rows = Decoder(), list[Row | BadRow]()
    with open(path, encoding=found.encoding, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if (row := row_of_line(name, number, line, decoder)) is not None:
                rows.append(row)
            if len(rows) == DECIDED_FROM:
                break
    if not rows:
        raise Unreadable(name, 0, "no rows")
    return [row for row in rows if isinstance(row, Row)]


def line_ranges(path: Path) -> Iterator[tuple[int, int, int]]:
    """Begin, end and number of the first line of consecutive stretches of whole lines, of about `BLOCK` bytes each."""
    begin, first = 0, 1
    with open(path, "rb") as file:
        while chunk := file.read(BLOCK):
            if not chunk.endswith(b"\n"):
                chunk += file.readline()
            end = begin + len(chunk)
            yield begin, end, first
            begin, first = end, first + chunk.count(b"\n")


def _of_rows(number: int, name: str, rows: Iterator[Row | BadRow], reading: Reading, report: FileReport) -> Iterator[tuple[Part, int]]:
    stopped: list[Unreadable] = []
    rows = _until(rows, stopped)
    head = list(itertools.islice(rows, DECIDED_FROM))
    if not head:
        raise stopped[0] if stopped else Unreadable(name, 0, "no rows")
    try:
        decided = decide([row for row in head if isinstance(row, Row)], reading, report)
    except Unreadable:
        report.rows += len(head) + sum(1 for _ in rows)
        raise
    held: list[Row | BadRow | Sample] = []
    size = 0
    for row in itertools.chain(head, rows):
        held.append(row)
        size += _size(row)
        if size >= BLOCK:
            yield Part(number, reading, decided, held), size
            held, size = [], 0
    yield Part(number, reading, decided, held), size
    if stopped:
        raise stopped[0]


def _until(rows: Iterator[Row | BadRow], stopped: list[Unreadable]) -> Iterator[Row | BadRow]:
    """The rows before a place that cannot be read past, which goes into `stopped`."""
    try:
        yield from rows
    except Unreadable as error:
        stopped.append(error)


def _size(row: Row | BadRow) -> int:
    size = ROW
    for value in row.values.values() if isinstance(row, Row) else ():
        size += len(value) if isinstance(value, str) else ROW * len(value) if isinstance(value, list | dict) else 0
    return size


def _sampled(
    sources: Sources, numbers: Sequence[int], wanted: int, reports: list[FileReport], broken: list[str]
) -> Iterator[tuple[Part, int]]:
    """`wanted` rows of a source: all of them are read and understood, which rows are good enough to be among them."""
    chosen = pick(_usable(sources, numbers, reports, broken), wanted, "sample")
    if wanted > len(chosen) and numbers:
        rows = f"{len(chosen)} usable row{'' if len(chosen) == 1 else 's'}"
        reports[numbers[-1]].warnings.append(f"{sources.names[sources.source_F[numbers[-1]]]}: only {rows} are there")
    for number in numbers:
        samples = [sample for own, sample in chosen if own == number]
        for first in range(0, len(samples), DECIDED_FROM):
            some = samples[first : first + DECIDED_FROM]
            yield Part(number, sources.reading, Decided("", sources.reading.columns, {}), some), BLOCK


def _usable(sources: Sources, numbers: Sequence[int], reports: list[FileReport], broken: list[str]) -> Iterator[tuple[int, Sample]]:
    for number in numbers:
        try:
            for sample in read_samples(sources.files[number], sources.reading, reports[number]):
                if not set_apart(sample, reports[number]):
                    yield number, sample
        except Unreadable as error:
            broken.append(str(error))


def _content(file: File) -> bytes:
    """A hash of what the file holds; of one that cannot be read, nothing."""
    if file.path is None:
        return hashlib.sha256(repr(BUILTIN[file.name.removeprefix("builtin:")]()).encode()).digest()
    try:
        with open(file.path, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError:
        return b""
