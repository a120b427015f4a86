"""The rows of a source that somebody wants to look at: the first ones, or those from a line on."""

import itertools
from collections.abc import Iterator

from tunesmith.data.names.resolve import File, Resolved, resolve
from tunesmith.data.sample import BadRow, FileReport, Sample
from tunesmith.data.sources import Reading, pick, read_samples
from tunesmith.errors import UserError

MOST_BAD = 20  # rows that cannot be used, after which looking further is no use


def choose(source: str, reading: Reading, rows: int, line: int | None = None, info: str = "auto") -> list[Sample | BadRow]:
    """Up to `rows` usable rows and the unusable ones between them, in order; no more of the files is read than that takes.

    `info` is `data.info`. `line`: of the one file that `source` names; the row that begins there, or that the line lies
    inside of, comes first.
    Raises UserError where there is no such line, and where nothing can be read.
    """
    resolved = resolve(source, info)
    if line is not None and len(resolved.files) != 1:
        raise UserError(f"--line {line}: {source} is {len(resolved.files)} files; name one of them")
    everything = _everything(resolved, reading)
    if resolved.rows is not None and line is None:
        usable = [found for found in everything if isinstance(found, Sample)]
        everything = iter(pick(usable, resolved.rows, "sample"))
    if line is not None:
        everything = _from(everything, line, source)
    chosen = list(_first(everything, rows))
    if not chosen:
        raise UserError(f"{source}: no rows")
    return chosen


def _everything(resolved: Resolved, reading: Reading) -> Iterator[Sample | BadRow]:
    return itertools.chain.from_iterable(_in_order(file, reading) for file in resolved.files)


def _in_order(file: File, reading: Reading) -> Iterator[Sample | BadRow]:
    """Usable and unusable rows as they stand in the file."""
    report, told = FileReport(file.name), 0
    for sample in read_samples(file, reading, report):
        yield from report.bad[told:]
        told = len(report.bad)
        yield sample
    yield from report.bad[told:]


def _first(everything: Iterator[Sample | BadRow], rows: int) -> Iterator[Sample | BadRow]:
    usable = bad = 0
    for found in everything:
        yield found
        usable += isinstance(found, Sample)
        bad += isinstance(found, BadRow)
        if usable == rows or bad == MOST_BAD:
            return


def _from(everything: Iterator[Sample | BadRow], line: int, source: str) -> Iterator[Sample | BadRow]:
    before: Sample | BadRow | None = None
    for found in everything:
        here = line_of(found)
        if here >= line:
            if here > line and before is not None:
                yield before  # the line lies inside of it
            yield found
            yield from everything
            return
        before = found
    last = f"; the last row begins at line {line_of(before)}" if before is not None else ""
    raise UserError(f"{source}: no row begins at line {line}{last}")


def line_of(found: Sample | BadRow) -> int:
    """Where the row begins; 1 is a file's first line."""
    return found.line if isinstance(found, BadRow) else int(found.origin.rpartition(":")[2])
