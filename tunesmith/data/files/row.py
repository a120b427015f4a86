"""A row as its file has it, and a file that cannot be read."""

from dataclasses import dataclass
from typing import Any

from tunesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class Row:
    """A row as the file has it."""

    origin: str  # the file's name as the user wrote it
    line: int  # 1 is the first; in a table the number of the row
    values: dict[str, Any]  # strings only, where the file is a CSV


class Unreadable(UserError):
    """A file that cannot be read at all, or not past a line; the rows before that line stay counted."""

    def __init__(self, name: str, line: int, reason: str, encoding: str = ""):
        self.name, self.line, self.reason, self.encoding = name, line, reason, encoding
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Unreadable, (self.name, self.line, self.reason, self.encoding)  # it may come out of another process
