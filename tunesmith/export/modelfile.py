"""A chat template as Ollama's TEMPLATE: what it writes around a system prompt, a question and an answer is found by asking it, and
laid out in Go's template language.

    head │ open question close │ open answer close │ open question close │ opening        (and a system prompt, in one of three places)

Nothing is known about a template by its name, so that ChatML, Llama 3, Gemma, Mistral, Phi-3, Qwen 3 and what comes after them go the
same way; what does something else is found when both are rendered and compared (`differences`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Message, RowError
from tunesmith.errors import UserError
from tunesmith.export import go_template
from tunesmith.export.go_template import quoted

CONTEXT = 8192  # tokens at most: the cache of 131,072 would take 16 GB for a model of 8B

SYSTEM, FIRST, ANSWER, SECOND = "tunesmithsystem", "tunesmithquestion", "tunesmithanswer", "tunesmithagain"


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands around what is said."""

    head: str  # in front of everything, where there is no system prompt
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str  # behind the last question
    system: tuple[str, str] | None = None  # around a system prompt; None: the template takes none
    place: Literal["own", "first", "last"] = "own"  # of the system prompt: a turn of its own, or inside the first or last question


def turns(renderer: Renderer) -> Turns:
    """Find them. Raises UserError for a template whose turns do not simply follow each other."""
    one, two = _said(renderer, [_user(FIRST)]), _said(renderer, [_user(FIRST), _assistant(ANSWER), _user(SECOND)])
    before, tail = _cut(one, FIRST)
    again, middle, between, behind = _cut(two, FIRST, ANSWER, SECOND)
    if (again, behind) != (before, tail):
        raise UserError("its chat template writes the first question otherwise once there are more")
    habits = renderer.habits()
    assert habits is not None
    user_open, assistant_close = _opening(before, between, habits.stop)
    if middle.startswith(assistant_close) and tail.startswith(assistant_close) and assistant_close:
        user_close = assistant_close
    else:
        user_close = _common(middle, tail)
    found = Turns(
        head=before.removesuffix(user_open),
        user=(user_open, user_close),
        assistant=(middle.removeprefix(user_close), assistant_close),
        opening=tail.removeprefix(user_close),
    )
    return _with_system(renderer, found)


def _with_system(renderer: Renderer, found: Turns) -> Turns:
    try:
        one = _said(renderer, [_system(SYSTEM), _user(FIRST)])
        two = _said(renderer, [_system(SYSTEM), _user(FIRST), _assistant(ANSWER), _user(SECOND)])
    except RowError:
        return found
    before, between, _ = _cut(one, SYSTEM, FIRST)
    begun = found.head + found.user[0]
    own = between.endswith(found.user[0]) and not (before.startswith(begun) and found.user[0] not in between)
    if own:
        system, place = (before, between.removesuffix(found.user[0])), "own"
    elif before.startswith(begun):
        system, place = (before.removeprefix(begun), between), "first" if two.index(SYSTEM) < two.index(FIRST) else "last"
    else:
        raise UserError("its chat template writes another beginning where there is a system prompt inside the question")
    return Turns(found.head, found.user, found.assistant, found.opening, system, place)  # type: ignore[arg-type]


def default_system(found: Turns) -> str:
    """The system prompt that the template writes where none is given, or ""."""
    if found.system is None or found.place != "own":
        return ""
    before, behind = found.system
    if found.head.startswith(before) and found.head.endswith(behind) and len(found.head) > len(before) + len(behind):
        return found.head[len(before) : len(found.head) - len(behind)]
    return ""


def _said(renderer: Renderer, messages: Sequence[Message]) -> str:
    return renderer.prompt(messages).text


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _cut(text: str, *words: str) -> list[str]:
    """What stands before, between and behind these words. Raises UserError where one is not there, or in another order."""
    parts = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            raise UserError(f"its chat template does not write what is said in the order in which it is said ({word})")
        parts.append(before)
    return [*parts, text]


def _opening(before: str, between: str, stop: str) -> tuple[str, str]:
    """(what opens a question, what closes an answer): the second goes up to the stop token and the blanks behind it, if there is one."""
    if stop and stop in between:
        end = between.index(stop) + len(stop)
        end += len(between[end:]) - len(between[end:].lstrip())
        if between[end:] and before.endswith(between[end:]):
            return between[end:], between[:end]
    count = 0
    while count < min(len(before), len(between)) and before[-1 - count] == between[-1 - count]:
        count += 1
    shared = between[len(between) - count :]
    return shared, between[: len(between) - count]


def _common(first: str, second: str) -> str:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return first[:count]


# --- as a template of Go's ---


def template_of(found: Turns, bos: str = "") -> str:
    """TEMPLATE's text. `bos` is the token that the tokenizer puts in front by itself; the template then must not."""
    head = found.head.removeprefix(bos)
    parts: list[tuple[str, str]] = []
    if found.system is not None and found.place == "own":
        before, behind = found.system
        parts += [("line", "if .System"), ("text", before.removeprefix(bos)), ("here", ".System"), ("text", behind)]
        parts += [("here", "else"), ("text", head)] if head else []
        parts.append(("here", "end"))
    else:
        parts.append(("text", head))
    parts += [("line", "range $i, $_ := .Messages"), ("line", "$last := eq (len (slice $.Messages $i)) 1")]
    parts += [("line", 'if eq .Role "user"'), ("text", found.user[0]), *_inside(found), ("here", ".Content"), ("text", found.user[1])]
    parts += [("here", 'else if eq .Role "assistant"'), ("text", found.assistant[0]), ("here", ".Content")]
    if found.assistant[1]:
        parts += [("here", "if not $last"), ("text", found.assistant[1]), ("here", "end")]
    parts.append(("here", "end"))
    if found.opening:
        parts += [("line", 'if and $last (ne .Role "assistant")'), ("text", found.opening), ("here", "end")]
    parts.append(("line", "end"))
    return _laid_out([part for part in parts if part != ("text", "")])


def _inside(found: Turns) -> list[tuple[str, str]]:
    if found.system is None or found.place == "own":
        return []
    before, behind = found.system
    condition = "if and $.System (eq $i 1)" if found.place == "first" else "if and $.System $last"
    return [("here", condition), ("text", before), ("here", "$.System"), ("text", behind), ("here", "end")]


def _laid_out(parts: Sequence[tuple[str, str]]) -> str:
    """A structural action begins a line of its own where that cannot take blanks of a text along."""
    written = ""
    for number, (kind, content) in enumerate(parts):
        if kind == "text":
            last = number == len(parts) - 1
            plain = "{{" not in content and "}}" not in content and '"""' not in content and not (last or number == 0)
            written += content if plain else "{{ " + quoted(content) + " }}"
        elif kind == "line" and (not written or written.endswith("}}")):
            written += ("\n" if written else "") + "{{- " + content + " }}"
        else:
            written += "{{ " + content + " }}"
    return written


def modelfile(gguf: str, template: str, stops: Sequence[str], system: str, context: int | None) -> str:
    """A Modelfile's text. `stops` are the texts of the tokens that end an answer, `context` the model's longest document in tokens."""
    lines = [f"FROM ./{gguf}", "", f'TEMPLATE """{template}"""', ""]
    if system and '"""' not in system:
        lines += [f'SYSTEM """{system}"""', ""]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    if context:
        lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    if context and context > CONTEXT:
        lines.append(f"# The model takes {context}; Ollama asks for the memory of num_ctx as soon as it loads.")
    return "\n".join(lines) + "\n"


def template_in(modelfile: str) -> str:
    """TEMPLATE's text in a Modelfile written here."""
    return modelfile.partition('TEMPLATE """')[2].partition('"""')[0]


def rendered(template: str, messages: Sequence[dict[str, Any]]) -> str:
    """What Ollama feeds for a conversation. Raises ValueError for a template that is not of those written here."""
    return go_template.render(template, go_template.collated(messages))
