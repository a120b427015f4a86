"""Files become rows that know their file and line: JSON Lines, JSON, CSV and plain text.

The line is where the row begins in the file, also in a JSON array and in a CSV whose fields hold line breaks, so that
every later message can name it. A row that cannot be read is a `BadRow` in its place and the rest goes on; a file that
cannot be read, or not past a line, raises `Unreadable`.
"""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.fields import describe
from tunesmith.data.json_values import BrokenJSON, Decoder, Value, explain, member, values
from tunesmith.data.recognise import Found, Unreadable, open_text, recognise
from tunesmith.data.sample import BadRow, FileReport

# Keys under which an object holds a file's rows, rather than being a row itself.
WRAPPERS = {
    "data",
    "rows",
    "examples",
    "items",
    "records",
    "instances",
    "samples",
    "dataset",
    "train",
    "test",
    "validation",
    "valid",
    "dev",
}
ROW_LISTS = {"messages", "conversations", "prompt", "completion"}  # lists that belong to one row
DELIMITERS = ",\t;|"


@dataclass(frozen=True, slots=True)
class Row:
    """A row as the file has it."""

    origin: str  # the file's name as the user wrote it
    line: int  # 1 is the first
    values: dict[str, Any]  # strings only, where the file is a CSV


def read_rows(
    path: Path, name: str, report: FileReport | None = None, *, encoding: str = "auto", documents: str = "file"
) -> Iterator[Row | BadRow]:
    """The rows of a file in order; blank lines are no rows.

    `name` is the file as the user wrote it. The file's encoding and warnings go into `report`. Raises Unreadable.
    """
    report = FileReport(name) if report is None else report
    found = recognise(path, name)
    report.encoding = found.encoding
    report.warnings += found.warnings
    with open_text(path, found) as stream:
        if found.kind == "jsonl":
            yield from _jsonl(stream, name)
        elif found.kind == "json":
            yield from _json(stream, name, found, report)
        elif found.kind == "csv":
            yield from _csv(stream, path, name, report)
        else:
            yield Row(name, 1, {"text": stream.read().replace("\r\n", "\n").replace("\r", "\n")})


def _jsonl(stream: Iterable[str], name: str) -> Iterator[Row | BadRow]:
    decoder = Decoder()
    for number, line in enumerate(stream, start=1):
        line = line.rstrip("\r\n").lstrip("\ufeff")
        if not line.strip():
            continue
        if not line.strip("\x00"):
            yield BadRow(name, number, f"{len(line)} zero bytes: the writing program crashed here; rows may be missing")
            continue
        try:
            value, flaw = decoder.line(line)
        except json.JSONDecodeError as error:
            yield BadRow(name, number, explain(error, line, error.colno))
        except RecursionError:
            yield BadRow(name, number, "nested too deeply (thousands of brackets inside one another)")
        except ValueError as error:  # an integer of more digits than Python converts
            yield BadRow(name, number, f"a number that cannot be read ({error})")
        else:
            yield _row(name, number, value, flaw)


def _json(stream: Any, name: str, found: Found, report: FileReport) -> Iterator[Row | BadRow]:
    """An array of objects, one object, or objects one after another."""
    held = None  # a first object is held back: alone in the file it may hold the rows inside
    try:
        for index, value in enumerate(values(stream, found.newline)):
            if index == 0 and isinstance(value.value, dict):
                held = value
                continue
            if held is not None:
                yield _row(name, held.line, held.value, held.flaw)
                held = None
            yield _row(name, value.line, value.value, value.flaw)
        if held is not None:
            yield from _alone(held, stream, name, found, report)
    except BrokenJSON as broken:
        if held is not None:
            yield _row(name, held.line, held.value, held.flaw)
        raise Unreadable(name, broken.line, f"{broken.reason}; nothing after this place can be read") from None


def _alone(only: Value, stream: Any, name: str, found: Found, report: FileReport) -> Iterator[Row | BadRow]:
    """The only object of a file: a row, or a wrapper around a list of rows, or columns of equally long lists."""
    line, value = only.line, only.value
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list) and inner}
    tables = [key for key, inner in lists.items() if isinstance(inner[0], dict) and (key.lower() in WRAPPERS or len(value) == 1)]
    if len(tables) == 1 and tables[0] not in ROW_LISTS:
        report.warnings.append(f"the rows were found under the key {tables[0]!r} of one object")
        stream.seek(0)
        text = stream.read()
        begins, ends = member(text, tables[0])
        above = text.count(found.newline, 0, begins)
        for item in values(io.StringIO(text[begins:ends], newline=""), found.newline):
            yield _row(name, above + item.line, item.value, item.flaw)
    elif len(tables) > 1:
        several = f"one object with several lists of rows ({', '.join(tables)})"
        raise Unreadable(name, line, f"{several}: write the list that is meant into a file of its own")
    elif (
        not only.flaw and len(lists) == len(value) > 1 and len({len(inner) for inner in lists.values()}) == 1 and not ROW_LISTS & set(lists)
    ):
        report.warnings.append("one object of equally long lists: read column by column; a row's line is that of the object")
        for cells in zip(*lists.values(), strict=True):
            yield Row(name, line, dict(zip(lists, cells, strict=True)))
    else:
        yield _row(name, line, value, only.flaw)


def _row(name: str, line: int, value: Any, flaw: str) -> Row | BadRow:
    if flaw:
        return BadRow(name, line, flaw)
    if not isinstance(value, dict):
        return BadRow(name, line, f'{describe(value)}, not an object: a row is {{"name": value, ...}}')
    return Row(name, line, value) if value else BadRow(name, line, "an empty object")


def _csv(stream: Iterable[str], path: Path, name: str, report: FileReport) -> Iterator[Row | BadRow]:
    lines = iter(stream)
    first_lines = list(itertools.islice(lines, 20))
    skipped = 0
    while first_lines and (not first_lines[0].strip() or first_lines[0].lower().startswith("sep=")):
        skipped += 1
        first_lines.pop(0)
    delimiter = _delimiter(first_lines, "\t" if ".tsv" in path.suffixes else "")
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
