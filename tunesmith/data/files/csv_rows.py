"""Tables of text: CSV with any of the usual delimiters, also as Excel writes it; the cells stay texts, whatever they look like."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator

from tunesmith.data.files.row import Row
from tunesmith.data.sample import BadRow, FileReport

DELIMITERS = ",\t;|"


def rows(stream: Iterable[str], name: str, report: FileReport, *, tabs: bool = False) -> Iterator[Row | BadRow]:
    """The rows of a table as {column: text}, each at the line where it begins. `tabs`: the file's name says tabs."""
    lines = iter(stream)
    first_lines = list(itertools.islice(lines, 20))
    skipped = 0
    while first_lines and (not first_lines[0].strip() or first_lines[0].lower().startswith("sep=")):
        skipped += 1
        first_lines.pop(0)
    delimiter = _delimiter(first_lines, "\t" if tabs else "")
    csv.field_size_limit(1 << 30)  # the default refuses fields over 131,072 characters
    reader = csv.reader(itertools.chain(first_lines, lines), delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        line = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(name, line, _csv_reason(str(error), skipped + reader.line_num))
            continue
        if not cells:
            continue
        if not columns:
            columns, is_header = _header(cells, first_lines, delimiter, report)
            if is_header:
                continue
        if len(cells) == len(columns):
            yield Row(name, line, dict(zip(columns, cells, strict=True)))
        elif any(cells):
            cure = "; quote fields that hold the delimiter or a line break" if len(cells) > len(columns) else ""
            yield BadRow(name, line, f"{len(cells)} fields, but the header has {len(columns)} ({', '.join(columns)}){cure}")


def _csv_reason(message: str, ended: int) -> str:
    if "unexpected end of data" in message:
        swallowed = f"it swallows everything to the end (line {ended})"
        return f"a quote is opened in this row and never closed: {swallowed}; close it, or double a quote inside a field"
    if "expected after" in message:
        return 'a quote stands in the middle of a quoted field: double it ("")'
    return f"not valid CSV: {message}"


def _delimiter(lines: list[str], by_name: str) -> str:
    """The character that cuts the first lines into the same number of fields, more than one; a comma where none does."""
    if by_name and lines and by_name in lines[0]:
        return by_name
    best, best_score = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if widths and widths[0] > 1:
            score = (widths.count(widths[0]) / len(widths), widths[0])
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _header(cells: list[str], first_lines: list[str], delimiter: str, report: FileReport) -> tuple[list[str], bool]:
    """Column names, and whether the first record is a header rather than data."""
    try:
        below = [row for row in csv.reader(first_lines, delimiter=delimiter) if len(row) == len(cells)][1:]
    except csv.Error:
        below = []
    if reason := _not_header(cells, below):
        columns = [f"column{index}" for index in range(1, len(cells) + 1)]
        report.warnings.append(
            f"no header line ({reason}): the first line is read as a row, and the columns are called {', '.join(columns)}"
        )
        return columns, False
    columns = []
    for index, cell in enumerate(cells, start=1):
        wanted = column = cell.strip() or f"column{index}"
        count = 0
        while column in columns:
            count += 1
            column = f"{wanted}.{count}"
        if column != wanted:
            report.warnings.append(f"two columns are called {wanted!r}: the later one is read as {column!r}")
        columns.append(column)
    return columns, True


def _not_header(cells: list[str], below: list[list[str]]) -> str:
    """Why the first record looks like data, or "". Names are short, are no numbers, and do not come again below."""
    for index, cell in enumerate(cells):
        cell = cell.strip()
        if re.fullmatch(r"[-+]?\d+([.,]\d+)?", cell):
            return f"{cell!r} is a number"
        sentence = cell.endswith((".", "?", "!", "。", "？", "！")) and len(cell) > 12
        if len(cell) > 80 or "\n" in cell or sentence:
            return f"{cell[:40]!r} is a text"
        if cell and sum(row[index].strip() == cell for row in below) >= 2:
            return f"{cell!r} comes again below"
    return ""
