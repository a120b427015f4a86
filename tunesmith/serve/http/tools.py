"""Tool calls as a model writes them. Nothing is known of a family by its name: a sample call is rendered with the model's own chat
template, and the text around its name and its arguments is what the model was trained to write.

    <tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>\n{"name": "..."
    └──────────── head ──┘       └─── middle ───┘                 └───────────── joint ───────────┘
                                                                  └──── tail ────┘  behind the last one
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.rendering.template import CLOSE, Habits
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError

NAME, SECOND, ID, KEY = "tunesmithcall", "tunesmithsecond", "idofacall", "tunesmithkey"
ARGUMENTS = {KEY: "tunesmithvalue"}
REASON = "tunesmithreason"
PYTHON_TAG = "<|python_tag|>"  # Llama 3 may put it in front of a call, which its template does not write
HARMONY, CHANNELS = "to=functions.", ("commentary", "analysis")  # gpt-oss
ARGUMENT_KEYS = ("arguments", "parameters", "args")
SAMPLE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "a sample",
            "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "a value"}}, "required": [KEY]},
        },
    }
    for name in (NAME, SECOND)
]


@dataclass(frozen=True, slots=True)
class Written:
    """The texts around names and arguments. `joint` is None where the template writes one call at most; `thinker` is the head of a call
    behind thinking, where it is another one."""

    head: str
    middle: str
    tail: str
    joint: str | None
    thinker: str
    python_tag: bool

    def text(self, name: str, arguments: str) -> str:
        return self.head + name + self.middle + arguments + self.tail


@dataclass(frozen=True, slots=True)
class Form:
    """What a parser looks for. Marks are without the blanks around them; an opening mark of "" is a call that begins the answer."""

    opens: tuple[str, ...]
    close: str
    named: bool  # a name, `between`, and arguments; else a JSON object with both
    between: str

    def texts(self) -> tuple[str, ...]:
        return (*self.opens, self.close, self.between)

    def mapped(self, change: Callable[[str], str]) -> "Form":
        return Form(tuple(map(change, self.opens)), change(self.close), self.named, change(self.between))


def written_calls(renderer: Any, habits: Habits) -> Written | None:
    """None where the template writes no calls, or none whose arguments are JSON."""
    one = _answer(renderer, habits, [NAME])
    spans = _spans(one)
    if spans is None:
        return None
    name, after, start, end = spans
    two = _answer(renderer, habits, [NAME, SECOND])
    pair = _spans(two)
    joint = two[pair[3] : two.index(SECOND)] if pair and SECOND in two[pair[3] :] else None
    thinking = _answer(renderer, habits, [NAME], REASON)
    thinker = thinking.partition(REASON)[2].partition(NAME)[0] if REASON in thinking else ""
    for close in _closes(renderer, habits):
        thinker = thinker.removeprefix(close)
    tag = PYTHON_TAG in renderer.encoder.ids
    return Written(one[:name], one[after:start], one[end:], joint, thinker, tag)


def form_of(written: Written) -> Form:
    text = written.text(NAME, json.dumps(ARGUMENTS))
    found = next(((place, end) for place, end, value in _objects(text) if call_in(value) == (NAME, ARGUMENTS)), None)
    if found is None:
        heads = {written.head.strip(), written.thinker.strip() or written.head.strip()}
        if HARMONY in written.head:  # the model itself names the channel first, which its template does not
            heads |= {f"{begin}<|channel|>{channel} {HARMONY}" for begin in ("", "<|start|>assistant") for channel in CHANNELS}
        return Form(_longest_first(heads), written.tail.strip(), True, written.middle)
    lead = text[: found[0]]
    heads = {_mark(lead)}
    if written.thinker:
        heads.add(_mark(written.thinker.removesuffix(written.head[found[0] :])))
    if written.python_tag and "" in heads:
        heads.add(PYTHON_TAG)
    return Form(_longest_first(heads), text[found[1] :].strip().removeprefix("]").strip(), False, "")


def call_in(value: Any) -> tuple[str, Any] | None:
    """(name, arguments) of a JSON object that calls; arguments that are JSON text are read. None where it is something else."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if isinstance(function, str):  # {"function": "weather", "arguments": {}}
        function = {"name": function, **value}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    key = next((key for key in ARGUMENT_KEYS if key in function), None)
    arguments = function[key] if key else {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (function["name"], arguments) if isinstance(arguments, dict) else None


def _mark(lead: str) -> str:
    return lead.strip().removesuffix("[").strip()


def _longest_first(marks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(marks, key=lambda mark: (-len(mark), mark)))


def _answer(renderer: Any, habits: Habits, names: Sequence[str], thought: str = "") -> str:
    """What the template has an assistant write who calls; "" where it writes no such thing."""
    calls = [{"type": "function", "id": ID, "function": {"name": name, "arguments": ARGUMENTS}} for name in names]
    message = {"role": "assistant", "content": "", "tool_calls": calls} | ({"reasoning_content": thought} if thought else {})
    talk: list[dict[str, Any]] = [{"role": "user", "content": "tunesmithquestion"}, message]
    text = _tried(renderer, talk, SAMPLE_TOOLS) or _tried(renderer, talk, ())  # some templates write calls, and no tools
    stop = next((token for token in renderer.stop_tokens if text.endswith(token)), "")
    text = text.removesuffix(stop)
    start, close = habits.block or ("", "")
    for lead in (start + close, close, habits.empty, habits.lead):
        if lead and text.startswith(lead):
            return text.removeprefix(lead)
    return text


def _tried(renderer: Any, talk: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
    try:
        text: str = renderer.answer(talk, tools)
    except (RowError, UserError):
        return ""
    return text


def _closes(renderer: Any, habits: Habits) -> list[str]:
    """What ends the thinking in front of a call: all of what the template writes there, or its first special token."""
    close = habits.block[1] if habits.block else CLOSE
    first = next(iter(renderer.encoder.find(close)), None)
    return [close[: first[1]]] if first else [close]


def _spans(text: str) -> tuple[int, int, int, int] | None:
    """Where the first call's name and, behind it, its arguments stand."""
    name = text.find(NAME)
    key = text.find(KEY, name)
    start = text.rfind("{", name + len(NAME), key) if 0 <= name < key else -1
    if start < 0:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return (name, name + len(NAME), start, end) if value == ARGUMENTS else None


def _objects(text: str) -> Iterable[tuple[int, int, Any]]:
    """(start, end, value) of all JSON objects in a text, those that stand inside others too."""
    for match in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.start())
        except ValueError:
            continue
        yield match.start(), end, value
