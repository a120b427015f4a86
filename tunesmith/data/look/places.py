"""Rows of one file as runs of neighbours: `lines 31-50, 60`. A run takes 16 bytes, however long it is."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 5  # runs named where space is short


@dataclass(slots=True)
class Places:
    """Rows in the order of the file. Neighbours are found by row, named by line: a row may take many lines of a pretty file."""

    count: int = 0
    firsts: array = field(default_factory=lambda: array("Q"))
    lasts: array = field(default_factory=lambda: array("Q"))
    row: int = -1  # the last one added

    def add(self, row: int, line: int) -> None:
        """Take in row number `row`, which begins at `line`; the same row again counts once."""
        if self.count and row == self.row:
            return
        if self.count and row == self.row + 1:
            self.lasts[-1] = line
        else:
            self.firsts.append(line)
            self.lasts.append(line)
        self.count += 1
        self.row = row

    def ranges(self, most: int | None = None) -> str:
        """`31-50, 60`; with `most`, that many runs and how many rows are left."""
        shown = len(self.firsts) if most is None else min(most, len(self.firsts))
        text = ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(self.firsts[:shown], self.lasts[:shown], strict=True))
        return text + (" ..." if shown < len(self.firsts) else "")

    def said(self, most: int | None = None) -> str:
        """`line 60` or `lines 31-50, 60`."""
        return f"line{'' if self.count == 1 else 's'} {self.ranges(most)}"


def places(rows: Iterable[tuple[int, int]]) -> Places:
    """From (row, line) in ascending order."""
    found = Places()
    for row, line in rows:
        found.add(row, line)
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing of a file: a sentence around the rows where it holds."""

    what: str
    where: Places | None = None
    then: str = ""

    def said(self, most: int | None = None) -> str:
        """The sentence; with `most`, no more runs of lines than that."""
        return self.what + (f": {self.where.said(most)}" if self.where is not None else "") + self.then


def count(number: int, noun: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
