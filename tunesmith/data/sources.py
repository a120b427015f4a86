"""What the user names as data becomes samples: read, understood, a part of them taken, several sources weighted."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tunesmith.data import columns as renaming
from tunesmith.data import shape
from tunesmith.data.columns import Columns
from tunesmith.data.files.read import Row, read_rows
from tunesmith.data.files.recognise import Unreadable
from tunesmith.data.formats import FORMATS
from tunesmith.data.names.resolve import File, Resolved, resolve
from tunesmith.data.sample import BadRow, FileReport, RowError, Sample
from tunesmith.errors import UserError

T = TypeVar("T")

LISTED = 20  # bad rows in a message
SHOWN = 5  # lines named in a sentence
RECOGNISED_FROM = 200  # first rows of a file that decide its format
SPARE = 10_000  # samples held while some of them are picked
DECIDED_FROM = 1000  # first rows of a file that decide which columns may be absent


@dataclass(frozen=True, slots=True)
class Reading:
    """How files and their rows are understood. It goes to other processes: everything in it can be pickled."""

    format: str = "auto"
    columns: Columns = field(default_factory=lambda: Columns({}))
    guess: bool = False  # try the likeliest `data.columns` on rows of no known shape; for reports only
    encoding: str = "auto"  # of the file's text; a name that Python knows, or auto
    documents: str = "file"  # what one document of a .txt or .md file is: file, heading, line
    adapt: Callable[[dict[str, Any]], dict[str, Any]] | None = None  # a row as `data.info` says -> a row of a shape on our shelf


def load_samples(
    source: str | list[tuple[str, float]], *, on_bad_row: str = "error", info: str = "auto", **how: Any
) -> tuple[list[Sample], list[FileReport]]:
    """The usable rows of all sources, in the order of the files, and a report on every file; `how` is what `understand` takes.

    A list gives each source a weight: 2.0 is every row twice, 0.5 a deterministic half. Raises UserError with every
    file and row that cannot be used; with `on_bad_row="skip"` bad rows are only counted in the reports.
    """
    reading = understand(**how)
    weighted = [(source, 1.0)] if isinstance(source, str) else source
    if not weighted or not all(name for name, _ in weighted):
        raise UserError("no training data: name a file, a folder, a glob or builtin:NAME (--data, or data.train)")
    problems: list[str] = []
    resolved = _resolve_all([name for name, _ in weighted], info, problems)
    samples: list[Sample] = []
    reports: list[FileReport] = []
    for found, (name, weight) in zip(resolved, weighted, strict=True):
        good: list[Sample] = []
        for file in found.files:
            report = FileReport(file.name)
            reports.append(report)
            try:
                good += [sample for sample in load_file(file, reading, report) if not set_apart(sample, report)]
            except Unreadable as error:
                problems.append(str(error))
        good = _part(good, found.rows, name, reports)
        samples += weigh(good, weight)
    if on_bad_row == "error":
        problems += bad_rows(reports)
    if not problems and not samples:
        bad = sum(len(report.bad) for report in reports)
        problems.append(
            f"{', '.join(name for name, _ in weighted)}: no usable rows"
            + (f" ({bad} bad rows; data.on_bad_row=error names them)" if bad else "")
        )
    if problems:
        raise UserError(*problems)
    return samples, reports


def judged(sample: Sample) -> str:
    """Why nothing may be learned from a sample or compared with it as it stands, or ""."""
    if sample.rejected or sample.desirable is not None:
        return "a preference pair or a judged answer: training and evaluation take answers only"
    return ""


def set_apart(sample: Sample, report: FileReport) -> bool:
    """Whether a sample is judged; if so it is a bad row of the report."""
    if reason := judged(sample):
        name, _, line = sample.origin.rpartition(":")
        report.bad.append(BadRow(name, int(line), reason))
        report.good -= 1
    return bool(reason)


def understand(
    format: str = "auto",
    columns: dict[str, str] | None = None,
    prompt: str | None = None,
    guess: bool = False,
    encoding: str = "auto",
    documents: str = "file",
) -> Reading:
    """Raises UserError for an unknown format, a column that is none of ours, and a template that cannot be read."""
    shape.known(format)
    return Reading(format, renaming.parse(columns, prompt), guess, encoding, documents)


def load_file(file: File, reading: Reading, report: FileReport) -> list[Sample]:
    """As `read_samples`, all at once."""
    return list(read_samples(file, reading, report))


def read_samples(file: File, reading: Reading, report: FileReport) -> Iterator[Sample]:
    """The usable rows of one file, one after another; the others go into `report.bad`, in the order of the file.

    A row of another known shape than the file's is read as what it is; the report says how many. `report` is whole
    once the last sample is taken. Raises Unreadable, after filling the report as far as the file goes.
    """
    report.warnings += file.notes
    reading = reading_of(file, reading)
    tally, broken = Tally(), list[Unreadable]()
    rows = _counted(_rows(file, reading, report), report, broken)
    head = list(itertools.islice(rows, DECIDED_FROM))
    try:
        decided = decide([row for row in head if isinstance(row, Row)], reading, report)
    except Unreadable:
        report.bad += [row for row in itertools.chain(head, rows) if isinstance(row, BadRow)]
        raise
    for row in itertools.chain(head, rows):
        found = to_sample(row, reading, decided, tally)
        if isinstance(found, BadRow):
            report.bad.append(found)
        else:
            report.good += 1
            yield found
    report.warnings += tally.warnings(report.format)
    if broken:
        raise broken[0]
    if not report.rows:
        raise Unreadable(file.name, 0, "no rows")


def reading_of(file: File, reading: Reading) -> Reading:
    """How this file is understood: where `data.info` names it, as its entry says."""
    documents = file.documents or reading.documents
    if file.adapt is None:
        return replace(reading, documents=documents)
    return Reading(guess=reading.guess, encoding=reading.encoding, documents=documents, adapt=file.adapt)


def _counted(rows: Iterable[Row | BadRow], report: FileReport, broken: list[Unreadable]) -> Iterator[Row | BadRow]:
    """Count rows; a place that cannot be read past goes into `broken`, so that the rows before it are not lost."""
    try:
        for row in rows:
            report.rows += 1
            yield row
    except Unreadable as error:
        report.encoding = report.encoding or error.encoding
        broken.append(error)


@dataclass(frozen=True, slots=True)
class Decided:
    """How the rows of one file are understood, decided by its first rows."""

    format: str
    columns: Columns
    absent: dict[str, str]  # our columns that a row may lack, and what is read there


def decide(first: list[Row], reading: Reading, report: FileReport) -> Decided:
    """Raises Unreadable where the rows have no shape that we know."""
    if reading.adapt is not None:
        first = [adapted for row in first if isinstance(adapted := _adapted(row, reading), Row)]
    if not first:
        return Decided("prompt", reading.columns, {})  # every row is bad, each for its own reason
    report.format, wanted = _format(first[:RECOGNISED_FROM], reading, report)
    return Decided(report.format, wanted, renaming.absent_as_empty([row.values for row in first], wanted))


def to_sample(row: Row | BadRow, reading: Reading, decided: Decided, tally: "Tally") -> Sample | BadRow:
    """What a row means, or why it cannot be used."""
    if isinstance(row, Row) and reading.adapt is not None:
        row = _adapted(row, reading)
    if isinstance(row, BadRow):
        return row
    wanted, usual = decided.columns, decided.format
    try:
        values = renaming.rename(row.values, wanted, decided.absent)
        for ours in decided.absent:
            tally.filled[ours] = tally.filled.get(ours, 0) + (values[ours] == decided.absent[ours])
        name = _own_format(values, reading, wanted, usual)
        sample = FORMATS[name].to_sample(_only(values, name, wanted), f"{row.origin}:{row.line}")
    except RowError as error:
        return BadRow(row.origin, row.line, _reason(row, error, reading, usual))
    if name != usual:
        tally.others.setdefault(name, Lines()).add(row.line)
    for note in sample.notes:
        tally.notes.setdefault(note, Lines()).add(row.line)
    tally.absent = {ours: (wanted.columns[ours], empty) for ours, empty in decided.absent.items()}
    return sample


def _adapted(row: Row, reading: Reading) -> Row | BadRow:
    assert reading.adapt is not None
    try:
        return Row(row.origin, row.line, reading.adapt(row.values))
    except RowError as error:
        return BadRow(row.origin, row.line, str(error))


@dataclass(slots=True)
class Lines:
    """How many lines, and the first of them."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(line)

    def __str__(self) -> str:
        """`line 3` or `lines 3, 7, 9, 10, 11 and 4 more`."""
        return _lines(self.first, self.count)


@dataclass(slots=True)
class Tally:
    """What is worth saying of a file's usable rows, counted while they are read. Tallies of a file's parts can be added."""

    others: dict[str, Lines] = field(default_factory=dict)
    notes: dict[str, Lines] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    absent: dict[str, tuple[str, str]] = field(default_factory=dict)  # our column: theirs, and what is read where it is absent

    def add(self, other: "Tally") -> None:
        for mine, theirs in ((self.others, other.others), (self.notes, other.notes)):
            for key, lines in theirs.items():
                held = mine.setdefault(key, Lines())
                held.count += lines.count
                held.first = sorted([*held.first, *lines.first])[:SHOWN]
        for ours, count in other.filled.items():
            self.filled[ours] = self.filled.get(ours, 0) + count
        self.absent |= other.absent

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Tally":
        """Back from `dataclasses.asdict`, perhaps by way of JSON."""
        lines = {key: {name: Lines(**held) for name, held in values[key].items()} for key in ("others", "notes")}
        return cls(**lines, filled=values["filled"], absent={ours: (told[0], told[1]) for ours, told in values["absent"].items()})

    def warnings(self, usual: str) -> list[str]:
        """Sentences for the report of a file whose rows usually have the format `usual`."""
        said = [
            f"{_count(lines.count, 'row')} of another shape, {other}, in a file of shape {usual}: {lines}"
            for other, lines in self.others.items()
        ]
        for ours, (theirs, empty) in self.absent.items():
            said.append(
                f"column {theirs!r}, a list or object wherever it stands, is absent or empty in {_count(self.filled[ours], 'row')}: "
                f"read there as {empty}"
            )
        return said + [f"{_count(lines.count, 'row')}: {note} ({lines})" for note, lines in self.notes.items()]


def _own_format(values: dict[str, Any], reading: Reading, wanted: Columns, usual: str) -> str:
    """The format of one row in a file whose rows usually have another; raw text does not mix with conversations."""
    own = shape.of_row(values, wanted) if reading.format == "auto" else usual
    return own if own and (own == "text") == (usual == "text") else usual


def _reason(row: Row, error: RowError, reading: Reading, name: str) -> str:
    """Why a row cannot be used: it is of a foreign shape, or what its format says."""
    own = reading.format != "auto" or reading.columns or FORMATS[name].recognises(set(row.values), row.values)
    foreign = "" if own else shape.looks_like(row.values)
    return f"this row is one of {foreign}" if foreign else str(error)


def _format(first: list[Row], reading: Reading, report: FileReport) -> tuple[str, Columns]:
    """The format that the first rows have, and how to rename their columns. Raises Unreadable."""
    wanted = reading.columns
    if reading.format != "auto":
        return reading.format, wanted
    absent = renaming.absent_as_empty([row.values for row in first], wanted)
    renamed = []
    for row in first:
        with contextlib.suppress(RowError):
            renamed.append(renaming.rename(row.values, wanted, absent))
    if name := shape.of_rows(renamed, wanted):
        return name, wanted
    if not renamed:
        return "prompt", wanted  # no row has the columns that were named; each row's own reason says so
    raw = [row.values for row in first]
    likely = shape.guess(raw) if reading.guess and not wanted else None
    if likely is None:
        raise Unreadable(first[0].origin, first[0].line, shape.unknown(raw, wanted))
    report.warnings.append(
        f"no shape that training knows by itself (columns {', '.join(renaming.leaves(raw[0]))}); checked as if you had said "
        f"data.columns={{prompt: {likely['prompt']}, completion: {likely['completion']}}}, which training needs to be told"
    )
    return "prompt", Columns(likely)


def _only(values: dict[str, Any], name: str, wanted: Columns) -> dict[str, Any]:
    """Where the user named columns, only those of the format count; the rest of the row is theirs."""
    return {key: value for key, value in values.items() if key in FORMATS[name].COLUMNS} if wanted else values


def _rows(file: File, reading: Reading, report: FileReport) -> Iterable[Row | BadRow]:
    if file.path is not None:
        return read_rows(file.path, file.name, report, encoding=reading.encoding, documents=reading.documents)
    from tunesmith.data.names.builtin import BUILTIN

    report.encoding = "utf-8"
    return [Row(file.name, line, values) for line, values in enumerate(BUILTIN[file.name.removeprefix("builtin:")](), start=1)]


def _resolve_all(names: list[str], info: str, problems: list[str]) -> list[Resolved]:
    resolved = []
    for name in names:
        try:
            resolved.append(resolve(name, info))
        except UserError as error:
            problems += error.problems
            resolved.append(Resolved(()))
    return resolved


def _part(samples: list[Sample], rows: int | None, name: str, reports: list[FileReport]) -> list[Sample]:
    if rows is None:
        return samples
    if rows > len(samples) and reports:
        reports[-1].warnings.append(f"{name}: only {_count(len(samples), 'usable row')} are there")
    return pick(samples, rows, "sample")


def pick(samples: Iterable[T], count: int, salt: str) -> list[T]:
    """`count` of the samples, the same ones always, in their order; a smaller count is a part of a larger one.

    Holds no more than about twice as many at a time.
    """
    held: list[tuple[bytes, int, T]] = []
    for index, sample in enumerate(samples):
        held.append((hashlib.sha256(f"tunesmith {salt} {index}".encode()).digest(), index, sample))
        if len(held) > 2 * count + SPARE:
            held = sorted(held, key=_chance)[:count]
    return [sample for _, _, sample in sorted(sorted(held, key=_chance)[:count], key=lambda item: item[1])]


def _chance(item: tuple[bytes, int, T]) -> bytes:
    return item[0]


def weigh(samples: Sequence[T], weight: float) -> list[T]:
    """Every sample as often as the whole part of `weight` says, and the fraction's share of them once more."""
    whole = int(weight)
    return list(samples) * whole + pick(samples, round((weight - whole) * len(samples)), "weight")


def bad_rows(reports: Sequence[FileReport]) -> list[str]:
    """Lines for a message: the first bad rows by their place, the count of the others, the cure."""
    bad = [row for report in reports for row in report.bad]
    if not bad:
        return []
    rows = sum(report.rows for report in reports)
    return [*listed(bad), f"{_count(len(bad), 'bad row')} of {rows}: mend them, or leave them out with data.on_bad_row=skip"]


def listed(bad: list[BadRow]) -> list[str]:
    """At most 20 lines `file:line: reason`. Where there are more rows than that, rows with the same reason share a line."""
    if len(bad) <= LISTED:
        return [place(row) for row in bad]
    alike: dict[tuple[str, str], list[BadRow]] = {}
    for row in bad:
        alike.setdefault((row.origin, row.reason), []).append(row)
    groups = list(alike.values())
    lines = [place(rows[0]) + (f" (and {_lines([row.line for row in rows[1:]])})" if len(rows) > 1 else "") for rows in groups[:LISTED]]
    rest = sum(len(rows) for rows in groups[LISTED:])
    return [*lines, f"and {rest} more bad rows"] if rest else lines


def place(row: BadRow) -> str:
    """`file:line: reason`, or `file: reason` where the file as a whole is meant."""
    return f"{where(row)}: {row.reason}"


def where(row: BadRow) -> str:
    """`file:line`, or the file where it is meant as a whole."""
    return f"{row.origin}:{row.line}" if row.line else row.origin


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _lines(lines: list[int], count: int = 0) -> str:
    """`line 3` or `lines 3, 7, 9, 10, 11 and 4 more`. `count`: how many there are, where `lines` has only the first."""
    count = max(count, len(lines))
    shown = ", ".join(map(str, lines[:SHOWN])) + (f" and {count - SHOWN} more" if count > SHOWN else "")
    return f"line{'s' if count > 1 else ''} {shown}"
