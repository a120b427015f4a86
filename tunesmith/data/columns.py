"""`data.columns` and `data.prompt`: rows of any shape become rows of a known one.

`{prompt: userInput.text, completion: labels}` takes our column `prompt` from theirs; a path reaches into objects by
name and into lists by index. A value that is no text becomes compact JSON text, so that a list of labels is learned as
it would be written. `prompt` is a template: "{question}\nContext: {context.text}", with {{ and }} for braces; beside it a
column that is plainly a label is the answer, where no other is named.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.data.fields import dig, json_text, listed
from tunesmith.data.formats import FORMATS, conll, labels, spans
from tunesmith.data.sample import RowError
from tunesmith.errors import UserError

# Our columns that keep their lists and objects; all others are texts.
STRUCTURED: tuple[str, ...] = ("messages", "conversations", "conversation", "tools", "functions", "history", "userInput", "data")
STRUCTURED += ("tokens", "words", "tags", "ner_tags", "labels", "spans", "entities", "slots")
STRUCTURED += ("chosen", "rejected", "chosen_messages", "rejected_messages", "kto_tag")
LISTS = ("spans", "entities")  # of STRUCTURED: where a row has none, an absent list means an empty one

# Beside one of these a label need not be the answer.
ANSWERS = ("answer", "answers", "completion", "output", "response", "reply", "solution", "summary", "translation")
# Beside one of these a label is not all that is learned of a text.
MARKED = frozenset(spans.COLUMNS) - set(labels.COLUMNS) - {"labels"}

OURS = tuple(dict.fromkeys(column for module in FORMATS.values() for column in module.COLUMNS))


@dataclass(frozen=True, slots=True)
class Columns:
    """How to rename a row's columns. `template` alternates plain text and column paths, and begins with plain text."""

    columns: dict[str, str]
    template: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.columns or self.template)


def parse(columns: dict[str, str] | None, prompt: str | None) -> Columns:
    """Raises UserError for a column of ours that does not exist and for a template with stray braces."""
    problems = []
    for ours in columns or {}:
        if ours not in OURS:
            near = difflib.get_close_matches(ours, OURS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; ours are {', '.join(OURS)}"
            problems.append(f"data.columns: {ours!r} is no column of ours (write ours: theirs){hint}")
    if prompt is not None and "prompt" in (columns or {}):
        problems.append("data.prompt and data.columns both say what the prompt is; leave one out")
    template: tuple[str, ...] = ()
    if prompt is not None:
        try:
            template = _template(prompt)
        except ValueError as error:
            problems.append(f"data.prompt: {error}")
    if problems:
        raise UserError(*problems)
    return Columns(dict(columns or {}), template)


def rename(values: dict[str, Any], wanted: Columns, absent: dict[str, str]) -> dict[str, Any]:
    """The row under our names. Other columns stay as they are, except those that were renamed.

    `absent` gives the text for a column of ours that a row does not have. Raises RowError.
    """
    if not wanted:
        return values
    taken = {path.partition(".")[0] for path in wanted.columns.values()} | {path for path in wanted.columns.values()}
    result = {name: value for name, value in values.items() if name not in taken and name not in wanted.columns}
    for ours, theirs in wanted.columns.items():
        try:
            value = dig(values, theirs)
        except KeyError as part:
            if ours not in absent:
                raise RowError(_no_column("data.columns", theirs, part.args[0], values)) from None
            value = None
        if value is None and ours in absent:
            value = absent[ours]
        result[ours] = value if value is None or _stays(ours, value) else json_text(value)
    if wanted.template:
        result = _asked(result, wanted, _filled(values, wanted.template))
    return result


def absent_as_empty(rows: list[dict[str, Any]], wanted: Columns) -> dict[str, str]:
    """Our columns whose value is a list (or object) in every row that has one, though some rows have none: their text.

    Some writers leave empty lists out (protocol buffers do); there an absent list means an empty one. A text or a
    number that is absent stays a bad row.
    """
    result = {}
    for ours, theirs in wanted.columns.items():
        kinds, missing = set(), 0
        for values in rows:
            try:
                value = dig(values, theirs)
            except KeyError:
                value = None
            missing += value is None
            kinds |= {type(value)} if value is not None else set()
        if missing and (ours not in STRUCTURED or ours in LISTS) and kinds in ({list}, {dict}):
            result[ours] = "[]" if list in kinds else "{}"
    return result


def _stays(ours: str, value: Any) -> bool:
    """Whether a value of our column is read as the list or object that it is."""
    return ours in STRUCTURED or _conversation(value) or (ours == "label" and (value == [] or spans.looks_marked(value)))


def _conversation(value: Any) -> bool:
    """Whether a value is a message or a list of messages."""
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(map(_message, turns))


def _message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= set(value) or {"from", "value"} <= set(value))


def _asked(row: dict[str, Any], wanted: Columns, question: str) -> dict[str, Any]:
    """The row with the question that the template made, and with its label as the answer where that is plainly one."""
    row = row | {"prompt": question}
    if "completion" in row:
        return row
    if "label" in wanted.columns or "text" in wanted.columns:
        return _in_question(row)
    found = [name for name in labels.named(row, labels.LABELS) if labels.short(row[name])]
    plain = len(found) == 1 and not any(name.lower() in ANSWERS for name in row)
    label = row[found[0]] if plain else None
    row = {name: value for name, value in row.items() if name not in found}
    if plain:
        row = {name: value for name, value in row.items() if name != "text"} | {"label": label}  # the text stands in the question
    return row


def _in_question(row: dict[str, Any]) -> dict[str, Any]:
    """A labelled row without its text, which stands in the question as the template has it; marked texts keep theirs beside it."""
    found = ["label"] if "label" in row else labels.named(row, labels.LABELS)
    if len(found) != 1 or row[found[0]] is None or isinstance(row[found[0]], list | dict) or not MARKED.isdisjoint(row):
        return row
    return {name: value for name, value in row.items() if name != "text"}


def _template(text: str) -> tuple[str, ...]:
    """Plain text and column paths in turn. Raises ValueError."""
    parts = [""]
    for piece in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+", text):
        if piece in ("{{", "}}"):
            parts[-1] += piece[0]
        elif piece in ("{", "}"):
            raise ValueError(f"a single {piece!r} in {text!r}; a column is {{name}}, and a brace itself is written twice")
        elif piece[0] == "{":
            if not piece[1:-1].strip():
                raise ValueError(f"{{}} names no column in {text!r}")
            parts += [piece[1:-1].strip(), ""]
        else:
            parts[-1] += piece
    if len(parts) == 1:
        raise ValueError(f"{text!r} names no column; write one in braces, such as {{question}}")
    return tuple(parts)


def _filled(values: dict[str, Any], template: tuple[str, ...]) -> str:
    result = template[0]
    for path, plain in zip(template[1::2], template[2::2], strict=True):
        try:
            value = dig(values, path)
        except KeyError as part:
            raise RowError(_no_column("data.prompt", path, part.args[0], values)) from None
        if value is None:
            raise RowError(f"data.prompt: column {path!r} is null")
        result += (_sentence(value) if path in conll.TOKENS else json_text(value)) + plain
    return result


def _sentence(tokens: Any) -> str:
    """Tokens as the sentence that they are."""
    words = listed(tokens)
    return conll.joined(words)[0] if words and all(isinstance(word, str) and word for word in words) else json_text(tokens)


def _no_column(setting: str, path: str, part: str, values: dict[str, Any]) -> str:
    names = leaves(values)
    near = difflib.get_close_matches(path, names, n=1)
    inside = f" (no {part!r})" if part != path else ""
    return f"{setting}: no column {path!r}{inside}; the row has {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else "")


def leaves(values: dict[str, Any]) -> list[str]:
    """Dotted paths of a row's columns, two levels deep, lists not opened."""
    names = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            names += [f"{name}.{inner}" for inner in value]
        else:
            names.append(str(name))
    return names
