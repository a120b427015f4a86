"""The part of Go's text/template that the Modelfiles written here use, rendered as Ollama does: so that what a template gives can be
compared with what was trained, where there is no Ollama.

    {{ .Content }} {{ $.System }} {{ $last }} {{ "text" }}       values; of a map a missing one is empty
    {{ if PIPE }} {{ else if PIPE }} {{ else }} {{ end }}        empty text, 0, false and empty lists are false
    {{ range $i, $x := LIST }} {{ end }}                         the dot is the item inside
    {{ $v := PIPE }}                                             to the end of the block
    eq ne and or not len slice                                   functions, arguments behind them, parentheses around what is inner
    {{- and -}}                                                  blanks on that side of the action go
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# a string may hold }}, a comment anything
_ACTION = re.compile(r'\{\{(-\s)?(\s*/\*.*?\*/\s*?|(?:"(?:[^"\\]|\\.)*"|[^"])*?)(\s-)?\}\}', re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|[^\s(),"]+)')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


@dataclass
class _Block:
    """`if` with its branches [(condition, body)], or `range` with one; the condition of `else` is empty."""

    kind: str
    branches: list[tuple[list[str], list[Any]]] = field(default_factory=list)


def render(template: str, values: dict[str, Any]) -> str:
    """The text. Raises ValueError for what the subset above does not hold."""
    nodes = _parse(template)
    return "".join(_run(nodes, values, values, {"$": values}))


def collated(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What Ollama hands to a template: messages of one role that follow each other as one, and the system prompts beside."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    return {"System": "\n\n".join(system), "Messages": joined, "Response": ""}


def quoted(text: str) -> str:
    """A text as one of Go's strings."""
    escapes = {value: "\\" + key for key, value in _ESCAPES.items()}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


# --- from text to blocks ---


def _parse(template: str) -> list[Any]:
    """A list of texts (str), actions (list of words) and blocks."""
    root: list[Any] = []
    stack: list[tuple[list[Any], _Block | None]] = [(root, None)]
    for part in _parts(template):
        body, block = stack[-1]
        if isinstance(part, str):
            body.append(part)
        elif part[0] in ("if", "range"):
            opened = _Block(part[0], [(part[1:], [])])
            body.append(opened)
            stack.append((opened.branches[0][1], opened))
        elif part[0] == "else":
            if block is None or block.kind != "if" or (len(part) > 1 and part[1] != "if"):
                raise ValueError(f"else where there is no if: {' '.join(part)}")
            block.branches.append((part[2:], []))
            stack[-1] = (block.branches[-1][1], block)
        elif part == ["end"]:
            if block is None:
                raise ValueError("an end too many")
            stack.pop()
        else:
            body.append(part)
    if len(stack) > 1:
        raise ValueError("an end is missing")
    return root


def _parts(template: str) -> Iterator[Any]:
    at, trim = 0, False
    for action in _ACTION.finditer(template):
        text = template[at : action.start()]
        text = text.lstrip() if trim else text
        if text := text.rstrip() if action[1] else text:
            yield text
        at, trim = action.end(), bool(action[3])
        if not action[2].strip().startswith("/*"):
            yield _words(action[2])
    if rest := template[at:].lstrip() if trim else template[at:]:
        yield rest


def _words(action: str) -> list[str]:
    words, at, action = [], 0, action.strip()
    while at < len(action):
        if (found := _WORD.match(action, at)) is None:
            raise ValueError(f"not understood: {action[at:]}")
        words.append(found[1])
        at = found.end()
    if not words:
        raise ValueError("an action without words")
    return words


# --- what they give ---


def _run(nodes: Sequence[Any], dot: Any, root: Any, variables: dict[str, Any]) -> Iterator[str]:
    variables = dict(variables)
    for node in nodes:
        if isinstance(node, str):
            yield node
        elif isinstance(node, _Block):
            yield from _block(node, dot, root, variables)
        elif len(node) > 1 and node[1] == ":=":
            variables[node[0]] = _value(node[2:], dot, variables)
        else:
            value = _value(node, dot, variables)
            yield str(value).lower() if isinstance(value, bool) else str(value)


def _block(block: _Block, dot: Any, root: Any, variables: dict[str, Any]) -> Iterator[str]:
    if block.kind == "if":
        for condition, body in block.branches:
            if not condition or _value(condition, dot, variables):
                yield from _run(body, dot, root, variables)
                return
        return
    words, body = block.branches[0]
    names: list[str] = []
    if ":=" in words:
        names, words = [word for word in words[: words.index(":=")] if word != ","], words[words.index(":=") + 1 :]
    for number, item in enumerate(_value(words, dot, variables)):
        given = dict(zip(names, (number, item)[2 - len(names) :], strict=True))
        yield from _run(body, item, root, variables | given)


def _value(words: Sequence[str], dot: Any, variables: dict[str, Any]) -> Any:
    terms = list(_terms(words, dot, variables))
    if isinstance(terms[0], _Function):
        return _FUNCTIONS[terms[0].name](*terms[1:])
    if len(terms) > 1:
        raise ValueError(f"not understood: {' '.join(words)}")
    return terms[0]


@dataclass(frozen=True)
class _Function:
    name: str


def _terms(words: Sequence[str], dot: Any, variables: dict[str, Any]) -> Iterator[Any]:
    at = 0
    while at < len(words):
        word = words[at]
        if word == "(":
            depth, end = 1, at
            while depth:
                end += 1
                if end == len(words):
                    raise ValueError("a parenthesis is not closed")
                depth += {"(": 1, ")": -1}.get(words[end], 0)
            yield _value(words[at + 1 : end], dot, variables)
            at = end
        elif word.startswith('"'):
            yield re.sub(r"\\(.)", lambda found: _ESCAPES[found[1]], word[1:-1])
        elif word.lstrip("-").isdigit():
            yield int(word)
        elif word in _FUNCTIONS:
            yield _Function(word)
        elif word.startswith(("$", ".")):
            yield _field(word, dot, variables)
        else:
            raise ValueError(f"not understood: {word}")
        at += 1


def _field(word: str, dot: Any, variables: dict[str, Any]) -> Any:
    first, *names = word.split(".")
    if first and first not in variables:
        raise ValueError(f"{first} is not there")
    value = variables[first] if first else dot
    for name in filter(None, names):
        value = value.get(name, "")
    return value


def _and(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


_FUNCTIONS: dict[str, Any] = {
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, other: first != other,
    "and": _and,
    "or": _or,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda items, start, *end: items[start : end[0] if end else None],
}
