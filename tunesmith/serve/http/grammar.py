"""What an answer must be, as an engine is told: calls in the form of the model's own template, and schemas that begin behind the thinking.

Grammars are Lark as llguidance reads it. There a token that the tokenizer holds beside its vocabulary is not its letters: where a text
holds a special one, that token must come; one that is not special may come as the token or spelled.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.serve.ask import Constraint
from tunesmith.serve.builtin.constraints import MISSING, grammar_of
from tunesmith.serve.http.errors import bad
from tunesmith.serve.http.reading import Reading
from tunesmith.serve.http.text import Vocabulary
from tunesmith.serve.http.tools import ID, Written

ANYTHING = "/(?s:.*)/"
BLANKS = r"/\s*/"


def forced_calls(
    reading: Reading,
    tools: Sequence[dict[str, Any]],
    vocabulary: Vocabulary,
    *,
    several: bool,
    opened: bool,
    otherwise: Constraint | None = None,
) -> Constraint:
    """Calls of these functions and nothing else, behind the thinking where the prompt has `opened` it. `otherwise` may come in place of
    all calls. Raises Problem where that is a grammar of its own."""
    written, added = reading.written, _added(vocabulary)
    assert written is not None
    names = [f"call_{index}" for index in range(len(tools))]
    joint = f" ({_literal(written.joint, added)} call)*" if several and written.joint is not None else ""
    head = written.thinker or written.head if opened else written.head
    thinking = _thinking(reading, vocabulary) + " " if opened else ""
    rules = [
        f"start: {thinking}({'calls | body' if otherwise else 'calls'})",
        f"calls: {_literal(head.lstrip() if opened else head, added)} call{joint} {_literal(written.tail, added)}",
        f"call: {' | '.join(names)}",
        *([f"body: {_body(otherwise)}"] if otherwise else []),
    ]
    for name, tool in zip(names, tools, strict=True):
        function = tool["function"]
        spelled = json.dumps(function["name"], ensure_ascii=False)[1:-1] if _quotes(written) else function["name"]
        rules.append(f"{name}: {_literal(spelled + written.middle, added)} {name}_arguments")
        rules.append(f"{name}_arguments: {_arguments(function.get('parameters') or {})}")
    return Constraint("lark", "\n".join(rules))


def behind_thinking(constraint: Constraint, reading: Reading, vocabulary: Vocabulary) -> Constraint:
    """The same for an answer that begins inside the thinking: held to it from the thinking's end on."""
    return Constraint("lark", f"start: {_thinking(reading, vocabulary)} body\nbody: {_body(constraint)}")


def _body(constraint: Constraint) -> str:
    """A constraint as a part of a grammar. Raises Problem."""
    if constraint.kind == "lark":
        raise bad(
            "a grammar of your own cannot stand beside tools or behind thinking; leave the tools out, or send "
            "chat_template_kwargs: {enable_thinking: false}"
        )
    try:
        text = grammar_of(constraint)
    except ImportError:
        raise bad(MISSING) from None
    except ValueError as error:
        raise bad(str(error)) from None
    if constraint.kind == "json":
        return f"%json {json.dumps(json.loads(text)['grammars'][0]['json_schema'], ensure_ascii=False)}"
    return text.removeprefix("start: ")


def _thinking(reading: Reading, vocabulary: Vocabulary) -> str:
    marks, added = {letter: vocabulary.specials[token] for token, letter in reading.marks.items()}, _added(vocabulary)
    closes = ["".join(marks.get(letter, letter) for letter in close) for close in reading.thought.closes]
    return f"{ANYTHING} ({' | '.join(_literal(close, added) for close in closes)}) {BLANKS}"


def _added(vocabulary: Vocabulary) -> dict[str, str]:
    """Texts of the tokens beside the vocabulary, each as Lark has it."""
    found = {}
    for index, token in vocabulary.tokenizer.added_tokens_decoder.items():
        spelled = "" if index in vocabulary.specials else " | " + json.dumps(token.content, ensure_ascii=False)
        found[token.content] = f"(<[{index}]>{spelled})"
    return found


def _literal(text: str, added: dict[str, str]) -> str:
    """A text as a sequence of Lark's literals; the id of a sample call is any id."""
    parts = []
    tokens = sorted(added, key=len, reverse=True)
    for part in re.split("(" + "|".join(map(re.escape, [ID, *tokens])) + ")", text):
        if part == ID:
            parts.append("/[A-Za-z0-9]{9}/")
        elif part in added:
            parts.append(added[part])
        elif part:
            parts.append(json.dumps(part, ensure_ascii=False))
    return " ".join(parts) or '""'


def _quotes(written: Written) -> bool:
    return written.head.endswith('"') and written.middle.startswith('"')


def _arguments(parameters: dict[str, Any]) -> str:
    """Arguments are an object, whatever a schema leaves open."""
    said = any(key in parameters for key in ("type", "$ref", "anyOf"))
    return _body(Constraint("json", parameters if said else {"type": "object", **parameters}))
