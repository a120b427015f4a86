"""A chat template: rendering it as `transformers` does, with the date frozen, and finding out what it does by asking it.

Nothing is known about a template by its name. A question and an answer made of words that stand nowhere else are
rendered, and the text around them shows the stop token, what the generation prompt holds, and where thinking goes.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from tunesmith.data.rendering.tokens import Encoder
from tunesmith.data.sample import Message, RowError
from tunesmith.errors import UserError

REFUSALS = (TemplateError, TypeError, KeyError, ValueError, AttributeError, IndexError)  # what a template raises over a row
Render = Callable[..., str]  # (messages, tools, generation prompt[, variables])

QUESTION, ANSWER, REASON = "tunesmithquestion", "tunesmithanswer", "tunesmithreason"
CALL: dict[str, Any] = {"type": "function", "id": "tunesmith", "function": {"name": "tunesmithcall", "arguments": {}}}
ARGUMENTS = {"tunesmithkey": "tunesmithvalue"}
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"  # as DeepSeek-R1 and Qwen3 write thinking


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template does with the last assistant message."""

    stop: str  # the special token that ends an answer; others may stand before it. "" where it writes none
    after: str  # what it writes after an answer where it writes no stop token
    asks: str  # where it writes no stop token: the token that opens the next question, if servers stop at it; else ""
    tells: str  # the same token behind tool calls: it opens their results
    held: str  # what the generation prompt holds that the template does not write in front of an answer
    nine: bool  # it refuses tool calls whose ids are not nine letters or digits (Mistral's)
    thinking: Literal["written", "plain", "removed"]  # reasoning_content is written; <think> text is content; it is cut out
    block: tuple[str, str] | None  # what it writes in front of thinking and between thinking and content
    lead: str  # what it writes in front of an answer without thinking
    empty: str  # the same, where it is an empty thinking block; else ""
    opened: bool  # the generation prompt ends inside a thinking block
    closed: bool  # the generation prompt ends behind a thinking block


def compile_template(template: str, tokenizer: Any, date: str) -> Render:
    """A function (messages, tools, generation prompt, variables={}) -> text, equal to `tokenizer.apply_chat_template`.

    `variables` are what a client sets besides (enable_thinking, say); what a template is given anyway cannot be changed by them.

    `strftime_now` gives `date` (YYYY-MM-DD). It stands in the context because `apply_chat_template` turns a function
    among its keyword arguments into text. `date_string` is not set: servers do not, and a template's own default counts.
    Raises RowError with the template's reason.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        compiled = _compile_jinja_template(template)
    except TemplateError as error:
        raise UserError(f"the model's chat template is not valid: {error}; mend chat_template in its tokenizer files") from None
    day = datetime.strptime(date, "%Y-%m-%d")
    # what a call of `render` would look up anew each time, name by name: half of its time
    context = dict(compiled.globals) | tokenizer.special_tokens_map | {"strftime_now": day.strftime, "documents": None}

    def call(messages: Sequence[Message], tools: Sequence[dict[str, Any]], generation: bool, variables: Mapping[str, Any]) -> str:
        values = {**variables, **context, "messages": messages, "tools": list(tools) or None, "add_generation_prompt": generation}
        return "".join(compiled.root_render_func(compiled.new_context(values, shared=True)))

    @cache
    def wants_text() -> bool:
        return _wants_text(lambda messages: call(messages, (), False, {}))

    def render(
        messages: Sequence[Message], tools: Sequence[dict[str, Any]], generation: bool, variables: Mapping[str, Any] = MappingProxyType({})
    ) -> str:
        messages = [_served(message) for message in messages]
        if any("tool_calls" in message for message in messages) and wants_text():
            messages = _arguments_as_text(messages)
        try:
            return call(messages, tools, generation, variables)
        except REFUSALS as error:
            raise RowError(f"the model's chat template refuses it: {error}") from None

    return render


def _served(message: Message) -> Message:
    """As a server hands it to the template: nothing of ours, nothing empty, thinking under both of its names."""
    message = {key: value for key, value in message.items() if key != "learn" and value is not None}
    if "reasoning_content" in message:
        message.setdefault("thinking", message["reasoning_content"])
    return message


def _wants_text(call: Callable[[list[Message]], str]) -> bool:
    """Whether a template takes a call's arguments as JSON text: an object is an error there, or is written as Python's {'a': 1}."""
    called = CALL | {"function": CALL["function"] | {"arguments": ARGUMENTS}}
    talk: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "", "tool_calls": [called]}]
    try:
        return str(ARGUMENTS) in call(talk)
    except TypeError:
        try:
            return json.dumps(ARGUMENTS) in call(_arguments_as_text(talk))
        except REFUSALS:
            return False
    except REFUSALS:
        return False


def _arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    def written(call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        if not isinstance(function.get("arguments"), str):
            function = function | {"arguments": json.dumps(function.get("arguments"), ensure_ascii=False)}
        return call | {"function": function} if "function" in call else function

    return [
        message | {"tool_calls": [written(call) for call in message["tool_calls"]]} if "tool_calls" in message else message
        for message in messages
    ]


def probe(render: Render, encoder: Encoder, stops: Collection[str] = ()) -> Habits:
    """Find out what a template does. `stops` are the tokens at which servers stop, as far as they are known.

    Raises UserError where it cannot write a question and an answer.
    """
    asked: list[Message] = [{"role": "user", "content": QUESTION}]
    try:
        prompt = render(asked, (), True)
        plain = render([*asked, {"role": "assistant", "content": ANSWER}], (), False)
    except RowError as error:
        raise UserError(
            f"one question and one answer cannot be written: {error}; check chat_template in the model's tokenizer files"
        ) from None
    if ANSWER not in plain:
        raise UserError("the model's chat template leaves out the assistant's answer; check chat_template in its tokenizer files")
    common = _common(prompt, plain)
    held = prompt[len(common) :]
    start = plain.index(ANSWER, len(common))
    written, reasoned = plain[len(common) : start], _reasoned(render, asked)
    after = plain[start + len(ANSWER) :]
    between = _tried(render, [*asked, {"role": "assistant", "content": ANSWER}, *asked]) or ""
    between = between[between.rfind(ANSWER) + len(ANSWER) :] if ANSWER in between else after
    stop = _stop(after, between, encoder, stops)
    asks = _opening(after, between, encoder, stops) if not stop else ""
    tells = _opening(*_around_call(render, asked), encoder, stops) if not stop else ""

    thinking, block = "plain", None
    if reasoned is not None and REASON in reasoned and reasoned.startswith(common) and ANSWER in reasoned:
        at = reasoned.index(REASON)
        block = (reasoned[len(common) : at], reasoned[at + len(REASON) : reasoned.rindex(ANSWER)])
        thinking = "written"
    elif REASON not in (_reasoned(render, asked, inside=True) or REASON):
        block, thinking = (OPEN, CLOSE), "removed"
    tail = prompt.rstrip()
    opened = tail.endswith("<think>") or (block is not None and thinking == "written" and not block[0] and bool(block[1]))
    closed = tail.endswith("</think>")
    if closed and thinking == "plain":  # written or not: what a server asks for is an answer without
        block, thinking = (OPEN, CLOSE), "removed"
    empty = written if block and _solid(written) == _solid("".join(block)) and _solid(written) else ""
    after = "" if stop else after
    nine = _tried(render, _called(asked, "call_1")) is None and _tried(render, _called(asked, CALL["id"])) is not None
    return Habits(stop, after, asks, tells, held, nine, thinking, block, written, empty, opened, closed)  # type: ignore[arg-type]


def _reasoned(render: Render, asked: list[Message], inside: bool = False) -> str | None:
    answer = {"content": f"{OPEN}{REASON}{CLOSE}{ANSWER}"} if inside else {"content": ANSWER, "reasoning_content": REASON}
    return _tried(render, [*asked, {"role": "assistant"} | answer])


def _tried(render: Render, messages: Sequence[Message]) -> str | None:
    try:
        return render(messages, (), False)
    except RowError:
        return None


def _stop(last: str, between: str, encoder: Encoder, stops: Collection[str]) -> str:
    """The special token that ends an answer; "" where none does.

    `last` stands behind a conversation's last answer, `between` behind an answer that a question follows. The tokens that
    both begin with close an answer wherever it stands: the model has to write them up to the one at which a server stops
    (Cohere's <|END_RESPONSE|><|END_OF_TURN_TOKEN|>), and never one of `last` alone (Phi-3's <|endoftext|>) in their place.
    """
    own, others = _specials(last, encoder), _specials(between, encoder)
    differ = next((n for n, (a, b) in enumerate(zip(own, others, strict=False)) if a != b), min(len(own), len(others)))
    closing = own[:differ]
    known = [token for _, token in closing or own if token in stops]
    if known:
        return known[0]
    if not closing:
        return own[0][1] if own else ""
    # nobody says where servers stop: all that stand side by side, for a line end may lead to the next message
    apart = next((n for n, (gap, _) in enumerate(closing) if n and gap), len(closing))
    return closing[apart - 1][1]


def _opening(last: str, between: str, encoder: Encoder, stops: Collection[str]) -> str:
    """GLM's way: no token closes an answer, the next message's first one ends it. "" where that is no stop token."""
    following = _specials(between.removeprefix(last), encoder)[:1] if between.startswith(last) else []
    return following[0][1] if following and not following[0][0] and following[0][1] in stops else ""


def _around_call(render: Render, asked: list[Message]) -> tuple[str, str]:
    """A conversation up to a tool call, and with its result; both empty where the template writes no tools."""
    called = _called(asked, CALL["id"])
    result = {"role": "tool", "content": ANSWER, "tool_call_id": CALL["id"], "name": "tunesmithcall"}
    return _tried(render, called) or "", _tried(render, [*called, result]) or ""


def _called(asked: list[Message], name: str) -> list[Message]:
    return [*asked, {"role": "assistant", "content": "", "tool_calls": [CALL | {"id": name}]}]


def _specials(text: str, encoder: Encoder) -> list[tuple[str, str]]:
    """The special tokens of a text, each with what stands between it and the one before."""
    found, at = [], 0
    for start, end in encoder.find(text):
        found.append((text[at:start], text[start:end]))
        at = end
    return found


def _solid(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _common(a: str, b: str) -> str:
    """The longest text that both begin with."""
    length = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]
