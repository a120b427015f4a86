"""Files become rows that know their file and line: JSON Lines and JSON here, every other kind in a file of its own.

The line is where the row begins in the file, also in a JSON array and in a CSV whose fields hold line breaks, so that
every later message can name it. A row that cannot be read is a `BadRow` in its place and the rest goes on; a file that
cannot be read, or not past a line, raises `Unreadable`.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tunesmith.data.fields import describe
from tunesmith.data.files import conll_lines, csv_rows, plain_text
from tunesmith.data.files.json_values import BrokenJSON, Decoder, Value, explain, member, values
from tunesmith.data.files.recognise import Found, Unreadable, open_text, recognise, suffix_of
from tunesmith.data.files.row import Row
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


def read_rows(
    path: Path, name: str, report: FileReport | None = None, *, encoding: str = "auto", documents: str = "file"
) -> Iterator[Row | BadRow]:
    """The rows of a file in order; blank lines are no rows.

    `name` is the file as the user wrote it. `encoding`: of its text, by a name that Python knows, or "auto". `documents`:
    what a row of a text is: the "file", a "line", or in Markdown the part under a "heading". The file's encoding and
    warnings go into `report`. Raises Unreadable.
    """
    report = FileReport(name) if report is None else report
    found = recognise(path, name, encoding)
    report.encoding = found.called
    report.warnings += found.warnings
    if found.kind in ("parquet", "arrow", "pdf"):
        yield from _binary(path, name, found, report)
        return
    try:
        with open_text(path, found) as stream:
            yield from _text(stream, path, name, found, report, documents)
    except (OSError, EOFError, UnicodeError) as error:
        raise Unreadable(name, 0, f"changed or vanished while it was read ({error})") from None


def _binary(path: Path, name: str, found: Found, report: FileReport) -> Iterator[Row | BadRow]:
    if found.kind == "pdf":
        from tunesmith.data.files import pdf

        yield from pdf.rows(path, name, report, packed=found.gzip)
    else:
        from tunesmith.data.files import parquet

        yield from parquet.rows(path, name, report, packed=found.gzip, arrow=found.kind == "arrow")


def _text(stream: IO[str], path: Path, name: str, found: Found, report: FileReport, documents: str) -> Iterator[Row | BadRow]:
    if found.kind == "jsonl":
        yield from _jsonl(stream, name)
    elif found.kind == "json":
        yield from _json(stream, name, found, report)
    elif found.kind == "csv":
        yield from csv_rows.rows(stream, name, report, tabs=suffix_of(path) == ".tsv")
    elif found.kind == "conll":
        yield from conll_lines.rows(stream, name)
    elif documents == "line":
        yield from plain_text.lines(stream, name)
    elif documents == "heading" and suffix_of(path) == ".md":
        yield from plain_text.parts(stream, name, report)
    else:
        yield from plain_text.pieces(stream, name)


def _jsonl(stream: Iterable[str], name: str) -> Iterator[Row | BadRow]:
    decoder = Decoder()
    for number, line in enumerate(stream, start=1):
        if (row := row_of_line(name, number, line, decoder)) is not None:
            yield row


def row_of_line(name: str, number: int, line: str, decoder: Decoder) -> Row | BadRow | None:
    """The row on one line of JSON Lines, with or without its line end; None where the line is blank."""
    line = line.rstrip("\r\n").lstrip("\ufeff")
    if not line.strip():
        return None
    if not line.strip("\x00"):
        return BadRow(name, number, f"{len(line)} zero bytes: the writing program crashed here; rows may be missing")
    try:
        value, flaw = decoder.line(line)
    except json.JSONDecodeError as error:
        return BadRow(name, number, explain(error, line, error.colno))
    except RecursionError:
        return BadRow(name, number, "nested too deeply (thousands of brackets inside one another)")
    except ValueError as error:  # an integer of more digits than Python converts
        return BadRow(name, number, f"a number that cannot be read ({error})")
    return _row(name, number, value, flaw)


def _json(stream: IO[str], name: str, found: Found, report: FileReport) -> Iterator[Row | BadRow]:
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


def _alone(only: Value, stream: IO[str], name: str, found: Found, report: FileReport) -> Iterator[Row | BadRow]:
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
