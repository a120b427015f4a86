"""How a text file is decoded: its encoding and line end, found by looking through the whole file once.

A file is either decoded strictly from its first byte to its last or refused with the place; no character is replaced.
"""

import codecs
import contextlib
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from tunesmith.data.files import encoding
from tunesmith.data.files.row import Unreadable

CHUNK = 1 << 18  # bytes
HEAD = 1 << 16  # bytes by which the kind of the file is recognised
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16BE"),
)
LEAST = 60  # bytes of a part that say whether it is written in the encoding of the whole
PARTS = 8
BEYOND_ASCII = bytes(range(128, 256))
LONG = 7  # characters beyond ASCII in a line; more are not valid UTF-8 by chance


@dataclass(frozen=True, slots=True)
class Decoded:
    """How the text is read."""

    codec: str  # for `open`
    called: str  # for the user; data.encoding takes it
    newline: str  # "\n" (also with "\r" before it), or "\r" in files of old Macintosh programs
    head: str  # the text's beginning without its byte order mark
    note: str = ""  # what the user should know


class _Broken(Exception):
    """Bytes that are no text in an encoding."""

    def __init__(self, line: int, offset: int, cut: bool):
        self.line, self.offset, self.cut = line, offset, cut


def decode(path: Path, name: str, packed: bool, wanted: str = "auto") -> Decoded:
    """Find the encoding, or check the one that the user names. `packed`: by gzip. Raises Unreadable, OSError."""
    with open_bytes(path, packed) as file:
        head = file.read(HEAD)
    if not head:
        raise Unreadable(name, 0, "the file is empty (0 bytes)")
    if head.lstrip(b"\x00") == b"":
        raise Unreadable(name, 0, "the file holds only zero bytes: it was lost in a crash; fetch it again")
    if wanted.lower() != "auto":
        return _as_told(path, name, packed, head, wanted)
    marked = [(codec, called) for mark, codec, called in MARKS if head.startswith(mark)]
    for codec, called in marked:
        with contextlib.suppress(*([Unreadable] if (codec, called) != marked[-1] else [])):  # UTF-16 of a zero looks like UTF-32
            return _marked(path, name, packed, head, codec, called)
    if (wide := _without_mark(head)) and (found := _tried(path, packed, head, *wide)):
        return found
    if (b"\x1b$B" in head or b"\x1b$@" in head) and (found := _tried(path, packed, head, "iso2022_jp", "ISO-2022-JP")):
        return found
    codec = "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        return Decoded(codec, codec, _newline(path, packed, "utf-8"), _head(head, codec))
    except _Broken as broken:
        cut = Unreadable(name, broken.line, "the file ends in the middle of a character: it was cut short; fetch it again")
        if broken.cut and not _nothing_else_beyond_ascii(path, packed):
            raise cut from None
        try:
            return _foreign(path, name, packed, head)
        except Unreadable as foreign:
            raise (cut if broken.cut else foreign) from None


def open_bytes(path: Path, packed: bool) -> IO[bytes]:
    """The file's bytes, unpacked."""
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else open(path, "rb")


def _head(head: bytes, codec: str) -> str:
    return codecs.getincrementaldecoder(codec)(errors="ignore").decode(head).lstrip("\ufeff")


def _newline(path: Path, packed: bool, codec: str) -> str:
    r"""Decode the whole file strictly and say what ends its lines: "\r" where no "\n" stands anywhere. Raises _Broken."""
    decoder = codecs.getincrementaldecoder(codec)()
    plain = codec in ("utf-8", "utf-8-sig")  # bytes can be counted instead of characters
    feeds = returns = offset = held = 0
    for chunk in _chunks(path, packed):
        if plain and not held and chunk.isascii():
            text: str | bytes = chunk
        else:
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                before = error.object[: error.start].decode(codec, errors="ignore").count("\n")
                raise _Broken(feeds + before + 1, offset - held + error.start, not chunk) from None
            held = len(decoder.getstate()[0])
            if plain:
                text = chunk
        feeds += text.count(b"\n") if isinstance(text, bytes) else text.count("\n")
        returns += text.count(b"\r") if isinstance(text, bytes) else text.count("\r")
        offset += len(chunk)
    return "\r" if returns and not feeds else "\n"


def _chunks(path: Path, packed: bool) -> Iterator[bytes]:
    """The file's bytes, and at last an empty chunk."""
    with open_bytes(path, packed) as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield b""


def _as_told(path: Path, name: str, packed: bool, head: bytes, wanted: str) -> Decoded:
    try:
        codec = encoding.named(wanted)
    except LookupError as error:
        raise Unreadable(name, 0, f"data.encoding={error.args[0]}") from None
    if codec == "utf-8" and head.startswith(codecs.BOM_UTF8):
        codec = "utf-8-sig"
    for mark, marked, called in MARKS:
        if head.startswith(mark) and codec.replace("-", "") == called.lower().replace("-", ""):
            codec = marked  # which takes the mark off
    try:
        return Decoded(codec, wanted, _newline(path, packed, codec), _head(head, codec))
    except _Broken as broken:
        wider = encoding.WIDER.get(codec)
        cure = f"{wider} holds more characters: data.encoding={wider}" if wider else "leave data.encoding out, and the file is recognised"
        raise Unreadable(name, broken.line, f"byte {broken.offset} is not {wanted} (data.encoding); {cure}", wanted) from None
    except UnicodeError as error:  # a codec of UTF-16 that finds no byte order mark
        raise Unreadable(name, 1, f"not {wanted} (data.encoding): {error}", wanted) from None


def _marked(path: Path, name: str, packed: bool, head: bytes, codec: str, called: str) -> Decoded:
    try:
        note = f"read as {called}, as its byte order mark says"
        return Decoded(codec, called, _newline(path, packed, codec), _head(head, codec), note)
    except _Broken as broken:
        what = "the file ends in the middle of a character" if broken.cut else f"byte {broken.offset} is not {called}"
        reason = f"{what}, though the byte order mark says {called}: the file is broken or was cut short; fetch it again"
        raise Unreadable(name, broken.line, reason, called) from None


def _without_mark(head: bytes) -> tuple[str, str] | None:
    """UTF-16 and UTF-32 without a byte order mark: their ASCII characters have zero bytes, always on the same side."""
    head = head[: len(head) // 4 * 4][:4096]
    quarter = len(head) // 4
    if quarter < 2:
        return None
    zeros = [head[side::4].count(0) for side in range(4)]
    if zeros[3] == quarter and zeros[2] > 0.9 * quarter and not zeros[0]:
        return "utf-32-le", "UTF-32LE"
    if zeros[0] == quarter and zeros[1] > 0.9 * quarter and not zeros[3]:
        return "utf-32-be", "UTF-32BE"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    least = 0.8 if _is_utf8(head) else 0.1  # UTF-8 may hold a zero byte here and there
    if max(even, odd) > least * quarter and min(even, odd) == 0:
        return ("utf-16-le", "UTF-16LE") if odd else ("utf-16-be", "UTF-16BE")
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def _tried(path: Path, packed: bool, head: bytes, codec: str, called: str) -> Decoded | None:
    """None where the file cannot be decoded so."""
    try:
        newline = _newline(path, packed, codec)
    except _Broken:
        return None
    return Decoded(codec, called, newline, _head(head, codec), _recognised(called))


def _recognised(called: str) -> str:
    return f"read as {called}, recognised by its characters (not UTF-8): if the text looks wrong, say data.encoding=NAME"


def _nothing_else_beyond_ascii(path: Path, packed: bool) -> bool:
    """Whether the bytes of a character cut at the end are the only ones, so that they may be whole in another encoding."""
    ascii_only = bytes(range(128))
    count = 0
    for chunk in _chunks(path, packed):
        count += 0 if chunk.isascii() else len(chunk.translate(None, ascii_only))
        if count > 3:
            return False
    return True


@dataclass(slots=True)
class _Survey:
    """What the lines of a file that is not UTF-8 hold."""

    line: int = 0  # the first one that is not UTF-8
    offset: int = 0  # of its first wrong byte
    wrong: int = 0  # lines that are not UTF-8
    right: int = 0  # lines beyond ASCII that are
    longest: int = 0  # characters beyond ASCII in one of these
    first: bytes = b""  # wrong lines at the beginning
    last: bytes = b""  # and at the end


def _survey(path: Path, packed: bool) -> _Survey:
    found = _Survey()
    block: list[bytes] = []
    offset = size = 0
    for number, line in _lines(path, packed):
        if not line.isascii():
            try:
                found.longest = max(found.longest, sum(ord(character) > 127 for character in line.decode("utf-8")))
                found.right += 1
            except UnicodeDecodeError as error:
                if not found.wrong:
                    found.line, found.offset = number, offset + error.start
                found.wrong += 1
                block.append(line)
                size += len(line)
                if size >= encoding.LOOKED_AT:
                    found.last = b"".join(block)
                    found.first, block, size = found.first or found.last, [], 0
        offset += len(line)
    if size > LEAST or not found.first:
        found.last = b"".join(block)
    found.first = found.first or found.last
    return found


def _lines(path: Path, packed: bool) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; one that is longer than a chunk comes in parts, cut behind an ASCII byte."""
    number, rest = 1, b""
    with open_bytes(path, packed) as file:
        while part := file.readline(CHUNK):
            whole = part.endswith(b"\n")
            last = len(part) < CHUNK
            part = rest + part
            cut = len(part) if whole or last or len(part) > 4 * CHUNK else len(part.rstrip(BEYOND_ASCII))
            rest = part[cut:]
            if cut:
                yield number, part[:cut]
            number += whole
    if rest:
        yield number, rest


def _foreign(path: Path, name: str, packed: bool, head: bytes) -> Decoded:
    """A file that is not UTF-8. Raises Unreadable where its encoding is not certain or not the same everywhere."""
    seen = _survey(path, packed)
    guess = encoding.guess(seen.first) or next(filter(None, map(encoding.guess, _parts(seen.first))), None)
    where = f"byte {seen.offset} is not UTF-8"
    by_chance = guess is not None and seen.longest <= encoding.BY_CHANCE.get(guess.codec, LONG) and seen.right <= seen.wrong / 2
    if seen.right and not by_chance:
        looks = f", they look like {guess.name}" if guess else ""
        reason = f"{where}, but other lines are: two encodings stand in one file{looks}; convert the parts before joining them"
        raise Unreadable(name, seen.line, reason)
    if guess is None:
        reason = f"{where}, nor an encoding that we recognise: name it (data.encoding=NAME), or save the file as UTF-8 text"
        raise Unreadable(name, seen.line, reason)
    if not guess.certain:
        reason = f"{where}; the file looks like {guess.name}, but that is not certain enough to read it so. "
        cure = f"If it is, say data.encoding={guess.name}, or convert it: {encoding.cure(name, guess.name)}"
        raise Unreadable(name, seen.line, reason + cure, guess.name)
    if other := _second(seen, guess):
        reason = f"{where}; parts of the file look like {guess.name} and parts like {other}: two encodings stand in one file"
        raise Unreadable(name, seen.line, f"{reason}; convert the parts before joining them")
    try:
        return Decoded(guess.codec, guess.name, _newline(path, packed, guess.codec), _head(head, guess.codec), _recognised(guess.name))
    except _Broken as broken:
        reason = f"the file looks like {guess.name}, but byte {broken.offset} is not {guess.name}: it is broken here, or two encodings "
        raise Unreadable(name, broken.line, reason + "stand in one file; convert the parts before joining them", guess.name) from None


def _parts(raw: bytes) -> Iterator[bytes]:
    """Some whole lines at a time."""
    part = b""
    for line in raw.splitlines(keepends=True):
        part += line
        if len(part) >= max(LEAST, len(raw) // PARTS):
            yield part
            part = b""
    yield part


def _second(seen: _Survey, guess: encoding.Guess) -> str | None:
    """Another encoding in which a part of the file is written: nearly all bytes can be decoded as GB18030, right or not."""
    for part in [*_parts(seen.first), seen.last]:
        found = encoding.guess(part) if len(part) >= LEAST else None
        if found and found.codec != guess.codec and found.odds >= encoding.CERTAIN:
            return found.name
    return None
