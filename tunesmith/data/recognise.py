"""What kind of file this is, by its content first and its name second, and whether it can be read as text at all."""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from tunesmith.data import encoding
from tunesmith.errors import UserError

Kind = Literal["jsonl", "json", "csv", "text"]

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
}

CHUNK = 1 << 20  # bytes
HEAD = 1 << 16  # bytes looked at to recognise the kind

# First bytes of what is no text: what it is, and the cure.
MAGIC = (
    (
        b"PAR1",
        "a Parquet file; this version reads text files: write it as JSON Lines (pandas: to_json(..., orient='records', lines=True))",
    ),
    (b"PK\x03\x04", "a zip archive (or an Excel .xlsx): unpack it, or save the sheet as CSV UTF-8"),
    (b"ARROW1", "an Arrow file; this version reads text files: write it as JSON Lines"),
    (b"\x28\xb5\x2f\xfd", "zstandard data: unpack it with zstd -d"),
    (b"BZh", "bzip2 data: unpack it with bunzip2"),
    (b"\xfd7zXZ", "xz data: unpack it with unxz"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite data base: write the table as CSV or JSON Lines"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer: the data itself has not been fetched; run git lfs pull"),
)
WIDE = ((b"\xff\xfe\x00\x00", "UTF-32LE"), (b"\x00\x00\xfe\xff", "UTF-32BE"), (b"\xff\xfe", "UTF-16LE"), (b"\xfe\xff", "UTF-16BE"))


class Unreadable(UserError):
    """A file that cannot be read at all, or not past a line; the rows before that line stay counted."""

    def __init__(self, name: str, line: int, reason: str, encoding: str = ""):
        self.name, self.line, self.reason, self.encoding = name, line, reason, encoding
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")


@dataclass(frozen=True, slots=True)
class Found:
    """How to read a file."""

    kind: Kind
    encoding: str  # "utf-8", or "utf-8-sig" where a byte order mark stands first
    newline: str  # "\n" (also with "\r" before it), or "\r" in files of old Macintosh programs
    gzip: bool
    warnings: tuple[str, ...] = ()


def recognise(path: Path, name: str) -> Found:
    """Look through the whole file once. Raises Unreadable with the reason and the cure."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        head, newline = _validate(path, name, packed)
    except FileNotFoundError:
        raise Unreadable(name, 0, "no such file") from None
    except IsADirectoryError:
        raise Unreadable(name, 0, "a folder, not a file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unreadable(name, 0, f"broken gzip data ({error}): fetch the file again") from None
    except OSError as error:
        raise Unreadable(name, 0, f"cannot be read: {error.strerror or error}") from None
    marked = head.startswith(codecs.BOM_UTF8)
    text = head.decode("utf-8-sig", errors="ignore").lstrip("\ufeff \t\r\n")
    if not text:
        raise Unreadable(name, 0, "no rows: the file holds only blank lines")
    if text[:15].lower().startswith(("<!doctype html", "<html")):
        raise Unreadable(name, 1, "an HTML page, not data: the download saved an error page or a web view; fetch the raw file")
    kind, warning = _kind(path, name, text)
    return Found(kind, "utf-8-sig" if marked else "utf-8", newline, packed, (warning,) if warning else ())


def open_text(path: Path, found: Found) -> IO[str]:
    """The file as text whose lines end where `found.newline` says, with their ends kept."""
    if found.gzip:
        return cast(IO[str], gzip.open(path, "rt", encoding=found.encoding, newline=found.newline))
    return open(path, encoding=found.encoding, newline=found.newline)


def _validate(path: Path, name: str, packed: bool) -> tuple[bytes, str]:
    """The file's first bytes and its line end; raises Unreadable where it is no UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    head = b""
    feeds = returns = offset = 0
    for chunk in _chunks(path, packed):
        if offset == 0:
            head = chunk[:HEAD]
            _refuse_binary(name, head)
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            raise _not_utf8(path, name, packed) from None
        feeds += chunk.count(b"\n")
        returns += chunk.count(b"\r")
        offset += len(chunk)
    if offset == 0:
        raise Unreadable(name, 0, "the file is empty (0 bytes)")
    if decoder.getstate()[0]:
        raise Unreadable(name, feeds + 1, "the file ends in the middle of a character: it was cut short; fetch it again")
    return head, "\r" if returns and not feeds else "\n"


def _chunks(path: Path, packed: bool) -> Iterator[bytes]:
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _refuse_binary(name: str, head: bytes) -> None:
    for mark, what in MAGIC:
        if head.startswith(mark):
            raise Unreadable(name, 1 if b"git-lfs" in mark else 0, f"this is {what}")
    for mark, wide in WIDE:
        if head.startswith(mark):
            raise Unreadable(name, 0, f"{wide} text (byte order mark), not UTF-8; convert it: {encoding.cure(name, wide)}", wide)
    # ASCII letters in UTF-16 have a zero byte each, on one side
    for side, wide in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        if len(head) > 8 and head[side:64:2].count(0) > 0.8 * len(head[side:64:2]) and head[1 - side : 64 : 2].count(0) == 0:
            raise Unreadable(name, 0, f"looks like {wide} text, not UTF-8; convert it: {encoding.cure(name, wide)}", wide)
    if head.lstrip(b"\x00") == b"":
        raise Unreadable(name, 0, "the file holds only zero bytes: it was lost in a crash; fetch it again")


def _not_utf8(path: Path, name: str, packed: bool) -> Unreadable:
    """The first line that is not UTF-8, what it probably is, and whether other lines are UTF-8 after all."""
    first_line = first_offset = offset = 0
    broken, right = b"", 0
    for number, line in enumerate(_lines(path, packed), start=1):
        try:
            line.decode("utf-8")
            right += not line.isascii()
        except UnicodeDecodeError as error:
            if not first_line:
                first_line, first_offset = number, offset + error.start
            if len(broken) < HEAD:
                broken += line
        offset += len(line)
    likely = encoding.guess(broken)
    where = f"byte {first_offset} is not UTF-8"
    if right:
        looks = f", they look like {likely}" if likely else ""
        return Unreadable(
            name, first_line, f"{where}, but other lines are: two encodings stand in one file{looks}; convert the parts before joining them"
        )
    if likely:
        return Unreadable(name, first_line, f"{where}; the file looks like {likely}. Convert it: {encoding.cure(name, likely)}", likely)
    return Unreadable(name, first_line, f"{where}, nor an encoding that we know: save the file as UTF-8 text")


def _lines(path: Path, packed: bool) -> Iterator[bytes]:
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        yield from file


def _kind(path: Path, name: str, text: str) -> tuple[Kind, str]:
    """By the first value in `text` (the file's head) where it is JSON, else by the suffix."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    by_name = SUFFIXES.get(suffix)
    by_content = _json_kind(text, by_name)
    if by_name is None and by_content is None:
        raise Unreadable(name, 0, f"not a kind of file that we know by its name or content; known are {', '.join(SUFFIXES)}")
    if by_content is None or by_content == by_name or (by_name in ("text", "csv") and by_content == "json"):
        # a text may begin with a bracket, a JSON array in a .csv is caught by its header
        return by_name or "text", ""
    what = {"jsonl": "JSON Lines (one object a line)", "json": "a JSON document"}[by_content]
    return by_content, f"named {suffix or 'without a suffix'}, but holds {what}; read as that"


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
