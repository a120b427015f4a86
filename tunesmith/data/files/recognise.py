"""What kind of file this is, by its content first and its name second, and how it is read."""

import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from tunesmith.data.files import conll_lines, decoding
from tunesmith.data.files.row import Unreadable

__all__ = ["SUFFIXES", "Found", "Kind", "Unreadable", "open_text", "recognise"]

Kind = Literal["jsonl", "json", "csv", "text", "conll", "parquet", "arrow", "pdf"]

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".pdf": "pdf",
}
WHAT: dict[Kind, str] = {
    "jsonl": "JSON Lines (one object a line)",
    "json": "a JSON document",
    "csv": "a table of text",
    "text": "text",
    "conll": "CoNLL columns (a token and its tag a line, a blank line between sentences)",
    "parquet": "a Parquet table",
    "arrow": "an Arrow table",
    "pdf": "a PDF",
}

# First bytes of what is read, but is no text.
TABLES: tuple[tuple[bytes, Kind], ...] = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"%PDF", "pdf"))
ARROW_STREAM = b"\xff\xff\xff\xff"  # also a rare text's first bytes, so that the name has to say .arrow too
# First bytes of what is not read: what it is, and the cure.
MAGIC = (
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstandard data: unpack it with zstd -d"),
    (b"BZh", "bzip2 data: unpack it with bunzip2"),
    (b"\xfd7zXZ", "xz data: unpack it with unxz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it with 7z x"),
    (b"Rar!", "a RAR archive: unpack it with unrar x"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (.xls, .doc): save a sheet as CSV UTF-8, a text as .txt or PDF"),
    (b"FEA1", "a table in the first version of Feather: write it again with a current pandas (to_parquet)"),
    (b"ORC", "an ORC table: write it as Parquet"),
    (b"Obj\x01", "an Avro table: write it as Parquet or JSON Lines"),
    (b"\x93NUMPY", "a NumPy array: it holds numbers, no text"),
    (b"GGUF", "a GGUF model: it belongs to --model, not to --data"),
    (b"\x89PNG", "a picture: its text needs OCR first"),
    (b"\xff\xd8\xff", "a picture: its text needs OCR first"),
    (b"SQLite format 3", "an SQLite data base: write the table as CSV or JSON Lines"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer: the data itself has not been fetched; run git lfs pull"),
)
OFFICE = (
    (b"xl/", "an Excel workbook (.xlsx): save the sheet as CSV UTF-8 (File, Save as)"),
    (b"word/", "a Word document (.docx): save it as plain text or PDF"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """How to read a file."""

    kind: Kind
    encoding: str  # codec for `open`: "utf-8", "utf-8-sig" where a byte order mark stands first, "gb18030" ...; or the kind of table
    newline: str  # "\n" (also with "\r" before it), or "\r" in files of old Macintosh programs
    gzip: bool
    warnings: tuple[str, ...] = ()
    called: str = ""  # the encoding as reports name it and data.encoding takes it


def recognise(path: Path, name: str, encoding: str = "auto") -> Found:
    """Look through the whole file once. `encoding`: what the user says it is. Raises Unreadable with the reason and the cure."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with decoding.open_bytes(path, packed) as unpacked:
            head = unpacked.read(decoding.HEAD)
        if table := _table(path, head):
            return Found(table, table, "\n", packed, _named_otherwise(path, table), table)
        _refuse(name, head, packed)
        text = decoding.decode(path, name, packed, encoding)
    except FileNotFoundError:
        raise Unreadable(name, 0, "no such file") from None
    except IsADirectoryError:
        raise Unreadable(name, 0, "a folder, not a file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unreadable(name, 0, f"broken gzip data ({error}): fetch the file again") from None
    except OSError as error:
        raise Unreadable(name, 0, f"cannot be read: {error.strerror or error}") from None
    begins = text.head.lstrip("\ufeff \t\r\n")
    if not begins:
        raise Unreadable(name, 0, "no rows: the file holds only blank lines")
    if begins[:15].lower().startswith(("<!doctype html", "<html")):
        raise Unreadable(name, 1, "an HTML page, not data: the download saved an error page or a web view; fetch the raw file")
    kind = _kind(path, name, text.head, begins)
    warnings = ((text.note,) if text.note else ()) + _named_otherwise(path, kind)
    return Found(kind, text.codec, text.newline, packed, warnings, text.called)


def open_text(path: Path, found: Found) -> IO[str]:
    """The file as text whose lines end where `found.newline` says, with their ends kept."""
    if found.gzip:
        return cast(IO[str], gzip.open(path, "rt", encoding=found.encoding, newline=found.newline))
    return open(path, encoding=found.encoding, newline=found.newline)


def suffix_of(path: Path) -> str:
    """The last suffix that says the kind, in lower case, or ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def _table(path: Path, head: bytes) -> Kind | None:
    for mark, kind in TABLES:
        if head.startswith(mark):
            return kind
    return "arrow" if head.startswith(ARROW_STREAM) and SUFFIXES.get(suffix_of(path)) == "arrow" else None


def _refuse(name: str, head: bytes, packed: bool) -> None:
    if head.startswith(b"PK\x03\x04"):
        for part, what in OFFICE:
            if part in head:
                raise Unreadable(name, 0, f"this is {what}")
    for mark, what in MAGIC:
        if head.startswith(mark):
            raise Unreadable(name, 1 if b"git-lfs" in mark else 0, f"this is {what}")
    if head[257:262] == b"ustar":
        raise Unreadable(name, 0, f"this is a tar archive: unpack it with tar {'xzf' if packed else 'xf'}")


def _named_otherwise(path: Path, kind: Kind) -> tuple[str, ...]:
    suffix = suffix_of(path)
    if SUFFIXES.get(suffix) == kind or (suffix not in SUFFIXES and kind in ("text", "csv")):
        return ()
    if kind == "conll":  # any name is usual for it
        return (f"read as {WHAT[kind]}",)
    return (f"named {suffix or 'without a suffix'}, but holds {WHAT[kind]}; read as that",)


def _kind(path: Path, name: str, head: str, begins: str) -> Kind:
    """By the head of the text where it is JSON or CoNLL, else by the suffix. `begins`: the head from its first character on."""
    suffix = suffix_of(path)
    by_name = SUFFIXES.get(suffix)
    if by_name in ("csv", "text", None) and conll_lines.looks_like(head):
        return "conll"
    by_content = _json_kind(begins, by_name)
    if by_content is None and by_name is None:
        raise Unreadable(name, 0, f"not a kind of file that we know by its name or content; known are {', '.join(SUFFIXES)}")
    if by_content is None and by_name in ("parquet", "arrow", "pdf"):
        raise Unreadable(name, 0, f"named {suffix}, but this is not {WHAT[by_name]}: it was cut short or is another file; fetch it again")
    if by_content is None or (by_name in ("text", "csv") and by_content == "json"):
        # a text may begin with a bracket, a JSON array in a .csv is caught by its header
        return by_name or "text"
    return by_content


def _json_kind(text: str, by_name: Kind | None) -> Kind | None:
    """jsonl or json where the text begins as one of them, None where that cannot be told."""
    if text[0] not in "{[":
        return None
    lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
    first = lines[0].strip()
    if first in ("{", "[") or (first[0] == "[" and first[1:].lstrip().startswith("{")):
        return "json"
    objects = sum(isinstance(_parse(line), dict) for line in lines[:5])
    if objects and (len(lines) > 1 or by_name != "json"):
        return "jsonl"
    return None


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
