"""Spoken text as it comes -> what is said and which tools are called.

    text ──open mark──► call ──name, then arguments──► after ──close mark──► between ──open mark──► call ...
      ▲                                                                        │
      └──────────── what is no call after all stays text ──────────────────────┘

A call's name goes out as soon as its arguments begin, and they go out as they come. Where they turn out not to be JSON, the call is
`broken`: whoever still can takes it back and shows its text.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tunesmith.serve.http.text import held_back
from tunesmith.serve.http.tools import Form, call_in

# An object up to its arguments, where its name comes first, as models write it.
HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?P<inner>"function"\s*:\s*\{\s*)?"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*'
    r'"(?:arguments|parameters|args)"\s*:\s*(?=\{)'
)
NAME = r"(?P<name>[\w.\-]+)"
LONGEST_NAME = 200  # characters in which a name and what stands behind it must come
BARE = frozenset("truefalsn0123456789+-.eE:, \t\r\n")  # what JSON has outside of quotes, besides brackets
SEPARATORS = " \t\r\n,;[]"  # between calls, in a JSON list or not


@dataclass(frozen=True, slots=True)
class Event:
    """`call`: its name; `arguments`: a piece of them; `broken`: all of the call's text, which is no call."""

    kind: Literal["said", "call", "arguments", "done", "broken"]
    text: str = ""


class Value:
    """Where a JSON object ends, by its braces and quotes alone. `bad`: a letter came that stands in no JSON outside of quotes."""

    def __init__(self, depth: int = 0):
        self._depth, self._quoted, self._escaped = depth, False, False
        self.bad = False

    def end(self, text: str) -> int:
        """How many of these further characters belong to it; -1 where it goes on."""
        for index, letter in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
            elif letter not in BARE:
                self.bad = True
                return index
        return -1


State = Literal["text", "call", "object", "arguments", "rest", "after", "between"]


class Calls:
    """Where one answer stands."""

    def __init__(self, form: Form, names: Collection[str]):
        """`names` are the functions there are: a call that no mark introduces must be of one of them."""
        self._form, self._names = form, frozenset(names)
        self._marks = tuple(mark for mark in form.opens if mark)
        self._bare = "" in form.opens
        between = r"\s+" if not form.between.strip() else r"[^{]{0,80}?"
        self._named = re.compile(NAME + between + r"(?=\{)") if form.named else None
        self._state: State = "text"
        self._held = ""  # came, not understood yet
        self._raw = ""  # all of the call that is being read
        self._given = ""  # the call's arguments so far
        self._value, self._seen = Value(), 0  # of what is being read; characters of `_held` that it knows
        self._braces = 0  # open ones around the arguments
        self._marked = False
        self._begun = False  # something was said or called: a call without a mark must come first

    @property
    def held(self) -> int:
        return len(self._held)

    def add(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        while True:
            before = (self._state, len(self._held))
            events += getattr(self, "_" + self._state)()
            if before == (self._state, len(self._held)):
                return events

    def end(self, *, cut: bool) -> list[Event]:
        """What was held back. `cut`: the answer was not finished, and a call that has begun stays one."""
        held, self._held, state = self._held, "", self._state
        self._state = "text"
        match state:
            case "text":
                return [Event("said", held)] if held else []
            case "arguments" if cut:
                return [Event("done")]
            case "arguments":
                return [Event("broken", self._raw)]
            case "call" | "object":
                return [Event("said", self._raw + held)]
            case "rest":
                return [Event("done")]
            case "after" if self._form.close.startswith(held.strip()):
                return []
            case _:
                return [Event("said", held)] if held.strip(SEPARATORS) else []

    # --- one function a state: takes from the front of what is held, or leaves it to wait for more ---

    def _text(self) -> list[Event]:
        held, blank = self._held, not self._held.strip()
        if self._bare and not self._begun:
            front = held.lstrip()
            if front.startswith("{") and not self._form.named:
                return self._enter("object", len(held) - len(front), 0)
            if front and self._named and not any(mark.startswith(front) for mark in self._marks) and self._may_be_named(front):
                return self._enter("call", len(held) - len(front), 0)
        found = [(place, -len(mark)) for mark in self._marks if (place := held.find(mark)) >= 0]
        if found:
            place, size = min(found)
            said = held[:place].rstrip()
            self._marked = True
            return self._say(said) + self._enter("call", len(said), place - len(said) - size)
        if blank:
            return []
        kept = held_back(held, self._marks)
        said = held[: len(held) - kept].rstrip()  # blanks may belong to a mark that follows
        self._held = held[len(said) :]
        return self._say(said)

    def _call(self) -> list[Event]:
        front = self._held.lstrip(SEPARATORS)
        self._take(len(self._held) - len(front))
        if not front:
            return []
        if self._named is None:
            if front[0] != "{":
                return self._broken()
            self._state, self._value, self._seen = "object", Value(), 0
            return []
        match = self._named.match(front)
        if match is None:
            return [] if self._may_be_named(front) else self._broken()
        if not self._marked and match["name"] not in self._names:
            return self._broken()
        self._take(match.end())
        return self._begin(match["name"], braces=0)

    def _may_be_named(self, front: str) -> bool:
        """Whether a name with arguments may stand or come here. A name that no mark introduces is one of those that there are."""
        if len(front) > LONGEST_NAME:
            return False
        word = re.match(NAME, front)
        if self._marked:
            return word is not None
        if word is None or word.end() == len(front):
            return any(name.startswith(front) for name in self._names)
        rest = front[word.end() :].lstrip()
        return word["name"] in self._names and (not rest or rest[0] == "{")

    def _object(self) -> list[Event]:
        match = HEAD.match(self._held)
        if match is not None and (self._marked or match["name"] in self._names):
            self._take(match.end())
            return self._begin(match["name"], braces=2 if match["inner"] else 1)
        end = self._value.end(self._held[self._seen :])
        if end < 0:
            self._seen = len(self._held)
            return []
        text = self._held[: self._seen + end]
        self._take(len(text))
        try:
            called = call_in(json.loads(text)) if not self._value.bad else None
        except (ValueError, RecursionError):
            called = None
        if called is None or not (self._marked or called[0] in self._names):
            return self._broken()
        self._state, self._begun = "after", True
        return [Event("call", called[0]), Event("arguments", json.dumps(called[1], ensure_ascii=False)), Event("done")]

    def _begin(self, name: str, *, braces: int) -> list[Event]:
        self._state, self._given, self._braces, self._begun = "arguments", "", braces, True
        self._value = Value()
        return [Event("call", name)]

    def _arguments(self) -> list[Event]:
        end = self._value.end(self._held)
        piece = self._held if end < 0 else self._held[:end]
        self._take(len(piece))
        self._given += piece
        events = [Event("arguments", piece)] if piece else []
        if end < 0:
            return events
        if not _is_object(self._given):
            raw, self._raw, self._state = self._raw, "", "text"
            return [*events, Event("broken", raw)]
        if not self._braces:
            self._state = "after"
            return [*events, Event("done")]
        self._state, self._value = "rest", Value(self._braces)
        return events

    def _rest(self) -> list[Event]:
        """An object goes on behind the arguments. A brace that is missing does not matter: they are whole."""
        end = self._value.end(self._held)
        self._take(len(self._held) if end < 0 else end)
        if end < 0:
            return []
        self._state = "after"
        return [Event("done")]

    def _after(self) -> list[Event]:
        front, close = self._held.lstrip(), self._form.close
        if close and close.startswith(front) and front != close:
            return []
        self._state, self._raw = "between", ""
        if close and front.startswith(close):
            self._held = front[len(close) :]
        return []

    def _between(self) -> list[Event]:
        front = self._held.lstrip(SEPARATORS)
        if not front:
            return []
        for mark in self._marks:
            if front.startswith(mark):
                self._held, self._marked = front, True
                return self._enter("call", 0, len(mark))
            if mark.startswith(front):
                return []
        if front[0] == "{" and not self._form.named:
            self._held = front
            return self._enter("object", 0, 0)
        self._state, self._held = "text", self._held.lstrip()
        return []

    # --- moving on ---

    def _enter(self, state: State, skip: int, mark: int) -> list[Event]:
        """A call begins behind `skip` characters; the first `mark` of it introduce it."""
        self._held = self._held[skip:]
        self._raw, self._value, self._seen = "", Value(), 0
        self._take(mark)
        self._state = state
        return []

    def _take(self, size: int) -> None:
        self._raw += self._held[:size]
        self._held = self._held[size:]

    def _say(self, text: str) -> list[Event]:
        self._begun = self._begun or bool(text)
        return [Event("said", text)] if text else []

    def _broken(self) -> list[Event]:
        """What looked like a call stays text."""
        raw, self._raw, self._state = self._raw, "", "text"
        if not self._marked:
            self._begun = True
        return self._say(raw)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
