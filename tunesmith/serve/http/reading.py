"""How one model's answers are to be read: the marks around its thinking and around its tool calls, found by looking at what its own
chat template writes.

Special tokens that are part of a mark stand in the text as a character of their own, out of the surrogates, which no decoded text can
hold: what a model spells letter by letter is never taken for one. All other special tokens vanish.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rendering.template import Habits
from tunesmith.serve.http.tools import SAMPLE_TOOLS, Form, Written, form_of, written_calls

OPEN, CLOSE = "<think>", "</think>"  # of models that learned to think from plain text, whatever their template knows
FIRST_MARK = 0xD800
_known: "weakref.WeakKeyDictionary[Any, dict[bool, Reading]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Thought:
    """Texts around an answer's thinking, marked, without the blanks around them."""

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    leads: tuple[str, ...]  # what the template writes in front of the spoken part
    blank: str  # the same where it is nothing but blanks


@dataclass(frozen=True, slots=True)
class Reading:
    """What it takes to read an answer."""

    marks: dict[int, str]  # special tokens' ids -> what stands for them
    thought: Thought
    form: Form | None  # None: no tools were given, or the template writes none
    written: Written | None  # the calls as the template spells them, special tokens as texts
    nine: bool  # call ids must be nine letters or digits


def reading_of(renderer: Any, tools: bool) -> Reading:
    """For answers to a prompt with or without tools. Looking takes some milliseconds, once for each renderer."""
    known = _known.setdefault(renderer, {})
    if tools not in known:
        known[tools] = _read(renderer, tools)
    return known[tools]


def _read(renderer: Any, tools: bool) -> Reading:
    habits = renderer.habits(SAMPLE_TOOLS if tools else ())
    written = written_calls(renderer, habits) if tools and habits is not None else None
    thought = _thought(renderer, habits)
    raw = form_of(written) if written is not None else None
    texts = [*thought.opens, *thought.closes, *thought.leads, *(raw.texts() if raw else ())]
    letters: dict[str, str] = {}
    for text in texts:
        for start, end in renderer.encoder.find(text):
            letters.setdefault(text[start:end], chr(FIRST_MARK + len(letters)))

    def marked(text: str) -> str:
        pieces, at = [], 0
        for start, end in renderer.encoder.find(text):
            pieces += [text[at:start], letters[text[start:end]]]
            at = end
        return "".join(pieces) + text[at:]

    return Reading(
        marks={renderer.encoder.ids[special]: letter for special, letter in letters.items()},
        thought=Thought(
            _unique(map(marked, thought.opens)), _unique(map(marked, thought.closes)), _unique(map(marked, thought.leads)), thought.blank
        ),
        form=raw.mapped(marked) if raw else None,
        written=written,
        nine=habits is not None and habits.nine,
    )


def _thought(renderer: Any, habits: Habits | None) -> Thought:
    start, close = (habits.block if habits else None) or ("", "")
    rest = ""
    first = next(iter(renderer.encoder.find(close)), None)
    if first is not None:  # one token ends the thinking; what the template writes behind it leads to what is spoken
        close, rest = close[: first[1]], close[first[1] :]
    opens, closes = _unique([start.strip(), OPEN]), _unique([close.strip(), CLOSE])
    lead = habits.lead if habits else ""
    leads = [each.strip() for each in (rest, lead) if not each.strip().startswith((*opens, *closes))]
    return Thought(opens, closes, _unique(leads), lead if lead.isspace() else "")


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    """Without empty ones, the longest first, so that the longest that fits is found."""
    return tuple(sorted({text for text in texts if text}, key=lambda text: (-len(text), text)))


def begins_thinking(prompt: str, habits: Habits | None) -> bool:
    """Whether a prompt leaves the answer inside a thinking block."""
    if prompt.rstrip().endswith(OPEN):
        return True
    return habits is not None and habits.opened and bool(habits.held) and prompt.endswith(habits.held)
