"""A sample: what a row of a file means, whatever shape the file had, with the place where it stood."""

from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

# A message in the shape that chat templates of `transformers` and OpenAI's interface take:
#   {"role": one of ROLES, "content": str,
#    "reasoning_content": str   (assistant only: its thinking, without tags),
#    "tool_calls": [{"type": "function", "id": str, "function": {"name": str, "arguments": dict}}]   (assistant only),
#    "tool_call_id": str, "name": str   (tool only),
#    "learn": bool   (assistant only; False: history that is fed but not learned)}
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """Either a conversation (`messages` not empty) or a raw text (`text` not None), never both."""

    origin: str  # "my.jsonl:17": file name as the user wrote it, and the line where the row begins (1 is the first)
    messages: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()  # OpenAI function schemas, as the chat template takes them
    text: str | None = None
    rejected: tuple[Message, ...] = ()  # preference pairs: what should not be answered in place of the last messages
    desirable: bool | None = None  # answers judged one by one (KTO): whether this one is good
    notes: tuple[str, ...] = ()  # what a reader of the report should know of this row; equal notes are counted together
    # What tasks with a head learn from, where the row's shape says it:
    source: str = ""  # the bare text that is classified or tagged, without what a prompt says around it
    label: str | None = None  # its class
    entities: tuple[tuple[int, int, str], ...] | None = None  # (start, end, type): characters of `source`, the end not included
    words: tuple[tuple[int, int], ...] = ()  # the row's own tokens, as characters of `source`
    scheme: str = ""  # of the row's tags: IOB1, IOB2, BIOES, ...


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, by its place, with the reason and where possible the cure."""

    origin: str
    line: int
    reason: str


class RowError(ValueError):
    """Raised by a format's `to_sample` for a row that it cannot use; its text is the reason shown to the user."""


@dataclass(slots=True)
class FileReport:
    """What was found in one file. `rows` counts every row, `good` the usable ones."""

    file: str
    rows: int = 0
    good: int = 0
    bad: list[BadRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    format: str = ""
    encoding: str = ""
