"""Parquet and Arrow tables, read batch by batch so that memory does not grow with the file; they need `pyarrow`.

Cells become what JSON would hold: lists, objects, texts, numbers, null. Where the table comes from the `datasets` library,
the numbers of a class column become the names that its schema gives them.
"""

import contextlib
import datetime
import decimal
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tunesmith.data.files.decoding import CHUNK, open_bytes
from tunesmith.data.files.row import Row, Unreadable
from tunesmith.data.sample import BadRow, FileReport

BATCH = 1024  # rows turned into Python at once


class _NotPlain(ValueError):
    """A cell that no text file could hold."""


def rows(path: Path, name: str, report: FileReport, *, packed: bool = False, arrow: bool = False) -> Iterator[Row | BadRow]:
    """The rows of a table; a row's line is its number, 1 is the first. `packed`: by gzip. Raises Unreadable."""
    try:
        import pyarrow
    except ImportError:
        raise Unreadable(name, 0, "a table of this kind is read with pyarrow: pip install pyarrow") from None
    number = 0
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_seekable(path, packed))
            schema, batches = _arrow(file) if arrow else _parquet(file)
            classes = _classes(schema, report)
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH):
                    part = batch.slice(start, BATCH)
                    yield from _rows(part, name, number, classes)
                    number += part.num_rows
        except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
            reason = _first_line(error)
            at = f" behind row {number}" if number else ""
            raise Unreadable(name, number, f"broken{at}: {reason}; it was cut short or damaged, fetch it again") from None


def _seekable(path: Path, packed: bool) -> IO[bytes]:
    """The file's bytes; a packed file is unpacked onto the disk first, since tables are read from their end."""
    if not packed:
        return open(path, "rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with open_bytes(path, True) as file:
        while chunk := file.read(CHUNK):
            unpacked.write(chunk)
    unpacked.seek(0)
    return unpacked


def _parquet(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    return table.schema_arrow, table.iter_batches(batch_size=BATCH)


def _arrow(file: IO[bytes]) -> tuple[Any, Iterator[Any]]:
    """A file of the Arrow format, with or without the index at its end."""
    import pyarrow.ipc

    indexed = file.read(6) == b"ARROW1"
    file.seek(0)
    if not indexed:
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema, iter(stream)
    table = pyarrow.ipc.open_file(file)
    return table.schema, (table.get_batch(index) for index in range(table.num_record_batches))


def _rows(part: Any, name: str, before: int, classes: dict[str, Any]) -> Iterator[Row | BadRow]:
    names = part.schema.names
    if len(set(names)) < len(names):
        twice = sorted({column for column in names if names.count(column) > 1})
        raise ValueError(f"several columns are called {', '.join(map(repr, twice))}")
    try:
        part.validate(full=True)  # a damaged table would otherwise be read beyond its memory
        columns = [column.to_pylist() for column in part.columns]
    except ValueError as error:
        if part.num_rows == 1:
            yield BadRow(name, before + 1, f"broken: {_first_line(error)}")
            return
        for index in range(part.num_rows):  # the others may be whole
            yield from _rows(part.slice(index, 1), name, before + index, classes)
        return
    for index in range(part.num_rows):
        line = before + index + 1
        try:
            yield Row(
                name,
                line,
                {
                    column: _cell(cells[index], column, classes.get(column))
                    for column, cells in zip(part.schema.names, columns, strict=True)
                },
            )
        except _NotPlain as error:
            yield BadRow(name, line, str(error))


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _cell(value: Any, column: str, named: Any = None) -> Any:
    """A value as JSON would hold it. `named`: the names of its classes, in the shape of the value. Raises _NotPlain."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return _class(value, column, named) if isinstance(named, list) else value
    if isinstance(value, float):
        return None if math.isnan(value) else value  # how tables write a number that is missing
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise _NotPlain(f"column {column!r} holds {len(value):,} bytes that are no text (a picture, a sound?)") from None
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):  # a map
            return {str(key): _cell(inner, column) for key, inner in value}
        inner_names = named["each"] if isinstance(named, dict) and "each" in named else None
        return [_cell(inner, column, inner_names) for inner in value]
    if isinstance(value, dict):
        fields = named.get("fields", {}) if isinstance(named, dict) else {}
        return {key: _cell(inner, f"{column}.{key}", fields.get(key)) for key, inner in value.items()}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    return str(value)


def _class(value: int, column: str, names: list[str]) -> str | None:
    if value == -1:
        return None  # no label, as in the test parts of many sets
    if not 0 <= value < len(names):
        raise _NotPlain(f"column {column!r} is {value}, but its schema names the classes 0 to {len(names) - 1}")
    return names[value]


def _classes(schema: Any, report: FileReport) -> dict[str, Any]:
    """For each column with classes in the metadata of the `datasets` library: their names, in the shape of the values.

    A list is the names themselves, {"each": ...} those of a list's elements, {"fields": {...}} those of an object's.
    """
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {column: named for column, feature in features.items() if (named := _named(feature)) is not None}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    if found:
        report.warnings.append(f"classes read by their names, not their numbers: {', '.join(found)}")
    return found


def _named(feature: Any) -> Any:
    if isinstance(feature, list):  # [feature]: a list of it
        inner = _named(feature[0]) if feature else None
        return None if inner is None else {"each": inner}
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = feature.get("names")
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    if kind in ("Sequence", "List", "LargeList"):
        inner = _named(feature.get("feature"))
        if kind == "Sequence" and isinstance(inner, dict) and "fields" in inner:
            return {"fields": {key: {"each": value} for key, value in inner["fields"].items()}}  # stored as an object of lists
        return None if inner is None else {"each": inner}
    if isinstance(kind, str):
        return None
    fields = {key: named for key, value in feature.items() if (named := _named(value)) is not None}
    return {"fields": fields} if fields else None
