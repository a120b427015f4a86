"""JSON values one after another out of a text stream, each with the line where it begins, in modest memory.

Python's own parser reads whole documents and forgets lines; here `JSONDecoder.raw_decode` reads one value at a time
from a buffer that grows only as far as the value at hand. What the parser lets pass silently is named: a key that
stands twice, NaN and numbers beyond a double, halves of characters.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

CHUNK = 1 << 16  # characters
SURROGATE = re.compile("[\ud800-\udfff]")
NEAR_END = 16  # characters; longer than any JSON literal or escape that a chunk's end may cut


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the stream. `flaw` is the reason not to use it, or empty."""

    line: int  # where it begins; 1 is the first
    value: Any
    flaw: str = ""


class BrokenJSON(ValueError):
    """The stream cannot be read past this place."""

    def __init__(self, line: int, reason: str):
        self.line, self.reason = line, reason
        super().__init__(f"line {line}: {reason}")


class Decoder:
    """A `JSONDecoder` that notes flaws beside each value."""

    def __init__(self) -> None:
        self._flaws: list[str] = []
        self._json = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def at(self, text: str, start: int) -> tuple[Any, int, str]:
        """The value that begins at `start`, where it ends, and its flaw or "". Raises JSONDecodeError, RecursionError."""
        self._flaws.clear()
        value, end = self._json.raw_decode(text, start)
        if "\\u" in text[start:end] and _lone_surrogate(value):
            self._flaws.append(
                "half of a character (a lone surrogate \\ud800-\\udfff): it cannot be written as UTF-8; write the whole character"
            )
        return value, end, "; ".join(dict.fromkeys(self._flaws))

    def line(self, text: str) -> tuple[Any, str]:
        """The one value of a line and its flaw. Raises JSONDecodeError, RecursionError."""
        start = len(text) - len(text.lstrip())
        value, end, flaw = self.at(text, start)
        if rest := text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, text.index(rest, end))
        return value, flaw

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            self._flaws.append(f"key {', '.join(map(repr, twice))} stands twice in one object: which value counts is unknown; keep one")
        return values

    def _constant(self, name: str) -> float:
        self._flaws.append(f"{name} is no JSON number; write null or leave the key out")
        return math.nan

    def _float(self, text: str) -> float:
        number = float(text)
        if math.isinf(number):
            self._flaws.append(f"the number {text} is too large for a double")
        return number


def values(stream: IO[str], newline: str = "\n") -> Iterator[Value]:
    """The elements of a top-level array, or the values that stand one after another.

    Raises BrokenJSON where the text is no JSON: what follows such a place cannot be told apart safely.
    """
    reader = _Buffer(stream, newline)
    in_array = reader.skip_blank() == "["
    if in_array:
        reader.take(1)
    separated = True
    while True:
        following = reader.skip_blank()
        if in_array and following == "]":
            reader.take(1)
            if reader.skip_blank():
                raise BrokenJSON(reader.line, "text follows the end of the array: two documents stand in one file")
            return
        if following == "":
            if in_array:
                raise BrokenJSON(
                    reader.line, "the file ends before the array is closed with ]: it was cut short; fetch it again, or close the array"
                )
            return
        if following == ",":
            if separated or not in_array:
                raise BrokenJSON(reader.line, "a comma without a value before it")
            reader.take(1)
            separated = True
            continue
        if in_array and not separated:
            raise BrokenJSON(reader.line, "no comma between two elements of the array")
        yield reader.value()
        separated = False


def member(text: str, key: str) -> tuple[int, int]:
    """Where the value of a key begins and ends in the text whose first object is known to be right."""
    decoder = json.JSONDecoder()
    at = _skip(text, text.index("{"), "{")
    while True:
        name, at = decoder.raw_decode(text, at)
        begins = _skip(text, at, ":")
        _, at = decoder.raw_decode(text, begins)
        if name == key:
            return begins, at
        at = _skip(text, at, ",")


def _skip(text: str, at: int, mark: str) -> int:
    """Behind the next `mark`, and behind the white space around it."""
    return re.compile(rf"[\s\ufeff]*{re.escape(mark)}\s*").match(text, at).end()  # type: ignore[union-attr]


class _Buffer:
    """The part of the stream that is being looked at, and the line on which it begins."""

    def __init__(self, stream: IO[str], newline: str):
        self.line = 1
        self._stream, self._newline = stream, newline
        self._text, self._at, self._ended = "", 0, False
        self._column = 0  # characters of the current line that stood before `_text`
        self._decoder = Decoder()

    def skip_blank(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n\ufeff":
                    return self._text[self._at]
                self.take(1)
            if not self._more(CHUNK):
                return ""

    def take(self, count: int) -> None:
        self.line += self._text.count(self._newline, self._at, self._at + count)
        self._at += count

    def value(self) -> Value:
        """Parse the value here. A parse that fails at the buffer's end is tried again with twice the text."""
        while True:
            try:
                value, end, flaw = self._decoder.at(self._text, self._at)
            except RecursionError:
                raise BrokenJSON(self.line, "nested too deeply (thousands of brackets inside one another)") from None
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - NEAR_END
                if cut and self._more(max(CHUNK, len(self._text) - self._at)):
                    continue
                line = self.line + self._text.count(self._newline, self._at, error.pos)
                reason = explain(error, self._text[self._at :], self._column_of(error.pos))
                raise BrokenJSON(line, reason + self._began(line)) from None
            except ValueError as error:  # an integer of more digits than Python converts
                raise BrokenJSON(self.line, f"a number that cannot be read ({error})") from None
            if isinstance(value, (int, float)) and end > len(self._text) - NEAR_END and self._more(CHUNK):
                continue  # a number may go on: 12 and 12.5e3 begin alike
            found = Value(self.line, value, flaw)
            self.take(end - self._at)
            return found

    def _began(self, line: int) -> str:
        return f" (in the row that begins on line {self.line})" if line != self.line else ""

    def _column_of(self, at: int) -> int:
        begins = self._text.rfind(self._newline, 0, at)
        return at - begins if begins >= 0 else self._column + at + 1

    def _more(self, count: int) -> bool:
        """Read on, and let go of what was taken. At the end nothing changes."""
        chunk = "" if self._ended else self._stream.read(count)
        self._ended = chunk == ""
        if self._ended:
            return False
        self._column = self._column_of(self._at) - 1
        self._text, self._at = self._text[self._at :] + chunk, 0
        return True


def explain(error: json.JSONDecodeError, text: str, column: int) -> str:
    """The parser's message in the user's words, with the column, and the likely cause. `text` begins with the value."""
    start = text.lstrip()
    before = error.doc[: error.pos].rstrip()
    if error.msg.startswith("Expecting property name") and before.endswith(",") and error.doc[error.pos : error.pos + 1] == "}":
        column -= error.pos - len(before) + 1  # Python before 3.13 points at the bracket, later ones at the comma
        return f"not valid JSON at column {max(1, column)}: a comma before the closing bracket; take it out"
    where = f"not valid JSON at column {column}: "
    if start.startswith(("{'", "[{'")):
        return "a Python dict literal, not JSON (names in single quotes): write rows with json.dumps(row), not print(row)"
    if start.startswith(("//", "#", "/*")):
        return "a comment; JSON has none: take the line out"
    if error.msg == "Extra data":
        return where + "something follows the value; one object a line"
    if error.msg.startswith("Unterminated string"):
        return where + "a string is never closed: the text was cut short, or a quote is missing"
    if "Illegal trailing comma" in error.msg:
        return where + "a comma before the closing bracket; take it out"
    if error.msg.startswith("Expecting property name") and error.doc[error.pos : error.pos + 1] == "'":
        return where + "a name in single quotes; JSON takes double quotes"
    if error.msg.startswith("Expecting value") and error.doc[error.pos : error.pos + 1] == "'":
        return where + "a string in single quotes; JSON takes double quotes"
    if error.pos >= len(error.doc.rstrip()):
        return where + "the text ends before the value does: it was cut short"
    near = error.doc[error.pos : error.pos + 12].split("\n")[0]
    return f"{where}{error.msg[0].lower()}{error.msg[1:]}, found {near!r}"


def _lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(_lone_surrogate(name) or _lone_surrogate(inner) for name, inner in value.items())
    return isinstance(value, list) and any(_lone_surrogate(inner) for inner in value)
