"""CoNLL columns: a token and its tag a line, further columns between them, a blank line between sentences."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from tunesmith.data.files.row import Row
from tunesmith.data.sample import BadRow

TAG = re.compile(r"O|[BIESLUM]-\S+")
DECIDED_FROM = 2000  # first lines that say how many columns there are
LEAST = 3  # lines of a file that is not named .conll: fewer may be anything
SHARE = 0.9  # of the lines end in a tag, and have the usual number of columns


def looks_like(text: str) -> bool:
    """Whether the head of a file holds such columns: prose does not, nor a table with a header."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(text) > 1000:
        lines.pop()  # perhaps cut
    rows = [cells for cells in map(split, _tokens(lines[:DECIDED_FROM])) if not cells[0].startswith("#") or TAG.fullmatch(cells[-1])]
    if len(rows) < LEAST or not TAG.fullmatch(rows[0][-1]):
        return False
    width, usual = Counter(map(len, rows)).most_common(1)[0]
    tagged = sum(TAG.fullmatch(cells[-1]) is not None for cells in rows)
    return width >= 2 and usual >= SHARE * len(rows) and tagged >= SHARE * len(rows)


def rows(stream: Iterable[str], name: str) -> Iterator[Row | BadRow]:
    """A row {"tokens": [...], "tags": [...]} for each sentence, at the line of its first token.

    A line with another number of columns is a bad row of its own, and the sentence around it is left out.
    """
    lines = (line.rstrip("\r\n").lstrip("\ufeff") for line in stream)
    first = list(itertools.islice(lines, DECIDED_FROM))
    found = [split(line) for line in _tokens(first)]
    width = max(2, Counter(map(len, found)).most_common(1)[0][0]) if found else 2
    column = 1 if _numbered(first, width) else 0
    begins, tokens, tags, broken = 0, list[str](), list[str](), False
    for number, line in enumerate(itertools.chain(first, lines, [""]), start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens and not broken:
                yield Row(name, begins, {"tokens": tokens, "tags": tags})
            begins, tokens, tags, broken = 0, [], [], False
            continue
        cells = split(line)
        if line.startswith("#") and not begins and (len(cells) != width or not TAG.fullmatch(cells[-1])):
            continue  # a comment above the sentence
        begins = begins or number
        if reason := _flaw(cells, width, column):
            broken = True
            yield BadRow(name, number, reason)
        elif not broken:
            tokens.append(cells[column])
            tags.append(cells[-1])


def split(line: str) -> list[str]:
    """Columns cut by tabs where there is one, else by blanks. Other white space, such as U+3000, may be a token."""
    return line.split("\t") if "\t" in line.strip(" \t") else re.split(" +", line.strip(" \t"))


def _tokens(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.strip() and not line.startswith("-DOCSTART-")]


def _numbered(lines: list[str], width: int) -> bool:
    """Whether the first column counts the tokens of each sentence, as in CoNLL-U."""
    fresh, starts = True, list[str]()
    for line in lines:
        if not line.strip():
            fresh = True
        elif fresh and not line.startswith("#"):
            starts.append(split(line)[0])
            fresh = False
    return width >= 3 and bool(starts) and all(start == "1" for start in starts)


def _flaw(cells: list[str], width: int, column: int) -> str:
    if len(cells) != width:
        seen = " ".join(cells)
        seen = seen if len(seen) <= 40 else seen[:40] + "..."
        return f"{len(cells)} columns, but the other lines have {width}: {seen!r}; the sentence around this line is left out"
    if not cells[column] or not cells[-1]:
        return f"an empty {'tag' if cells[column] else 'token'}; the sentence around this line is left out"
    return ""
