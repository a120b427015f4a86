r"""Plain text and Markdown as documents: the file, its lines, or the parts under its headings.

Line ends become "\n"; nothing else of the text changes.
"""

import re
from collections.abc import Iterator
from typing import IO

from tunesmith.data.files.row import Row
from tunesmith.data.sample import FileReport

LONGEST = 1_000_000  # characters of a row; a longer text is cut between paragraphs, so that it need not fit into memory
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t].*)?\n?")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)\n?", re.DOTALL)
FRONT_MATTER = 1000  # lines; a later closing line is another thing


def pieces(stream: IO[str], name: str, longest: int = LONGEST) -> Iterator[Row]:
    """The whole text in one row, or cut behind a blank line (where none is, behind a line) into rows of `longest` characters."""
    held: list[tuple[int, str]] = []  # (line, text)
    size = 0
    for number, line in _lines(stream, longest):
        held.append((number, line))
        size += len(line)
        if size > longest and len(held) > 1:
            cut = next((index for index in range(len(held) - 1, 0, -1) if not held[index - 1][1].strip()), len(held) - 1)
            yield _joined(name, held[:cut])
            held = held[cut:]
            size = sum(len(text) for _, text in held)
    if held:
        yield _joined(name, held)


def lines(stream: IO[str], name: str) -> Iterator[Row]:
    """Each line that is not blank, without its end."""
    for number, line in enumerate(stream, start=1):
        line = line.rstrip("\r\n").lstrip("\ufeff" if number == 1 else "")
        if line.strip():
            yield Row(name, number, {"text": line})


def parts(stream: IO[str], name: str, report: FileReport, longest: int = LONGEST) -> Iterator[Row]:
    """A Markdown text cut at its headings (# to ######), not inside fenced code.

    Each part begins with its own heading and, before it, the headings above, so that it is understood alone. A heading
    without text is no row; front matter (between --- lines at the top) is left out and said.
    """
    above: list[tuple[int, str]] = []  # (level, heading)
    begins, body, size, fence = 0, list[str](), 0, ""
    for number, line in _without_front_matter(stream, longest, report):
        fence, in_code = _in_fence(line, fence)
        heading = None if in_code else HEADING.fullmatch(line)
        if heading or size > longest:
            yield from _part(name, begins, above, body)
            begins, body, size = number, [], 0
        begins = begins or number
        if heading:
            level = len(heading.group(1))
            above = [*((upper, text) for upper, text in above if upper < level), (level, line.strip())]
            continue
        body.append(line)
        size += len(line)
    yield from _part(name, begins, above, body)


def _part(name: str, begins: int, above: list[tuple[int, str]], body: list[str]) -> Iterator[Row]:
    text = "".join(body)
    if text.strip():
        yield Row(name, begins, {"text": "".join(f"{heading}\n" for _, heading in above) + text})


def _in_fence(line: str, fence: str) -> tuple[str, bool]:
    """The fence that is open behind this line ("" for none), and whether the line belongs to fenced code."""
    found = FENCE.fullmatch(line)
    if not fence:
        opens = bool(found) and not (found.group(1)[0] == "`" and "`" in found.group(2))  # type: ignore[union-attr]
        return (found.group(1), True) if opens else ("", False)  # type: ignore[union-attr]
    if found and found.group(1).startswith(fence) and not found.group(2).strip():
        return "", True
    return fence, True


def _without_front_matter(stream: IO[str], longest: int, report: FileReport) -> Iterator[tuple[int, str]]:
    numbered = _lines(stream, longest)
    first = next(numbered, None)
    if first is None:
        return
    held = [first]
    if first[1].rstrip() == "---":
        for number, line in numbered:
            held.append((number, line))
            if line.rstrip() in ("---", "..."):
                report.warnings.append(f"front matter left out (lines 1 to {number})")
                held = []
                break
            if number > FRONT_MATTER:
                break
    yield from held
    yield from numbered


def _lines(stream: IO[str], longest: int) -> Iterator[tuple[int, str]]:
    """(number, line) with "\\n" as line end. A line of more than `longest` characters comes in pieces of the same number."""
    number = 1
    while line := stream.readline(longest):
        if len(line) == longest and line.endswith("\r"):
            line += stream.readline(1)  # "\r\n" may have been cut between the two
        ends = line.endswith(("\n", "\r"))
        line = line.replace("\r\n", "\n").replace("\r", "\n")
        yield number, line.lstrip("\ufeff") if number == 1 else line
        number += ends


def _joined(name: str, held: list[tuple[int, str]]) -> Row:
    return Row(name, held[0][0], {"text": "".join(text for _, text in held)})
