"""An assistant message's answer out of what the chat template renders: where it begins, where its thinking stands, and
whether the template wrote all of it."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from tunesmith.data.rendering import notes
from tunesmith.data.rendering.template import Habits, Render
from tunesmith.data.sample import Message, RowError

Thinking = Literal["keep", "drop", "empty"]


def thought_and_spoken(message: Message) -> tuple[str, str]:
    """An assistant message's thinking, be it in `reasoning_content` or in a <think> block, and its text."""
    content = message.get("content") or ""
    if message.get("reasoning_content"):
        return message["reasoning_content"], content
    found = re.match(r"\s*<think>(.*?)</think>\s*", content, re.DOTALL) if "<think>" in content else None
    return (found[1].strip("\n"), content[found.end() :]) if found else ("", content)


def without_thinking(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def behind(render: Render, prompt: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]], habits: Habits) -> tuple[str, str]:
    """What the template writes for the last message where the prompt ends, and what of the prompt it does not write itself.

    Some templates write history otherwise once a message follows: gpt-oss leaves out the thinking of finished work, Mistral
    the system prompt in front of all but the last question. The message is written the same behind a history without them.
    """
    full = render(messages, tools, False)
    found = _rest(prompt, full, habits)
    history, bare = messages[:-1], [without_thinking(message) for message in messages[:-1]]
    for other in (bare, [message for message in bare if message["role"] != "system"]):
        if found is None and other != history:
            try:
                found = _rest(render(other, tools, True), render([*other, messages[-1]], tools, False), habits)
            except RowError:
                continue
    if found is not None:
        return found
    spoken = messages[-1]["content"].strip()
    if spoken and not messages[-1].get("tool_calls") and spoken in full:
        return full[_begin(full, messages[-1], spoken, habits) :], ""
    raise RowError("the model's chat template writes other things in front of the answer than a server feeds; mend chat_template")


def _rest(prompt: str, full: str, habits: Habits) -> tuple[str, str] | None:
    if full.startswith(prompt):
        return full[len(prompt) :], ""
    header = prompt.removesuffix(habits.held)
    return (full[len(header) :], habits.held) if habits.held and full.startswith(header) else None


def _begin(full: str, message: Message, spoken: str, habits: Habits) -> int:
    """Where the last message begins in a text: at its words, or at what the template writes in front of them."""
    place = full.rindex(spoken)
    start, close = habits.block or ("", "")
    for lead in (start + message.get("reasoning_content", "") + close, habits.lead):
        if lead and full.endswith(lead, 0, place):
            return place - len(lead)
    return place


def with_thinking(body: str, held: str, thought: str, habits: Habits, thinking: Thinking) -> tuple[str, str]:
    """The answer as it goes on behind the generation prompt, and what the report should count ("" for nothing).

    `body` is what the template writes for the message, `held` what of it the prompt holds already, `thought` the
    thinking that the template cut out.
    """
    start, close = habits.block or ("", "")
    bare = not (habits.opened or habits.closed or held)  # the generation prompt says nothing about thinking
    note = ""
    if thinking == "drop" and not habits.opened:
        body = body.removeprefix(habits.empty)
    elif thinking == "empty" and bare and not body.startswith(habits.empty or start + close):
        body = start + close + body.removeprefix(habits.lead)
    elif thought and habits.closed:
        note = notes.THINK_CLOSED
    elif thought:
        body = start + thought + close + body
    if held and body.startswith(held):
        body = body[len(held) :]
    elif held and habits.opened:
        closes = close.strip() and body.lstrip().startswith(close.strip())  # the template itself ends the thinking that it opened
        body, note = body if closes else close + body, notes.THINK_OPENED
    return body, note


def check_prompt(messages: Sequence[Message], tools: Sequence[dict[str, Any]], prompt: str) -> int:
    """How many messages the prompt leaves out or changes. Raises RowError where it leaves out tools, calls or results."""
    for tool in tools:
        name = tool.get("function", tool).get("name", "")
        if name not in prompt:
            raise RowError(f"the model's chat template leaves out the tools ({name!r}); take a model whose template writes tools")
    _find_calls(messages, prompt, "earlier tool calls")
    missing = 0
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str) or message["role"] == "assistant" or content.strip() in prompt:
            continue
        if message["role"] != "tool":
            missing += 1
        elif json.dumps(content, ensure_ascii=False)[1:-1] not in prompt:
            raise RowError("the model's chat template leaves out a tool's result; take a model whose template writes tool messages")
    return missing


def check_answer(message: Message, answer: str, thought: str = "") -> bool:
    """Whether text beside tool calls was left out. `thought` was put in front. Raises RowError where more is missing."""
    if message.get("tool_calls"):
        calls = answer
        for text in (thought, message.get("reasoning_content", ""), message["content"]):
            calls = calls.replace(text.strip(), "", 1)  # thinking about a call names it too
        _find_calls([message], calls, "the assistant's tool calls")
    if message["content"].strip() in answer:
        return False
    if not message.get("tool_calls"):
        raise RowError("the model's chat template leaves out or changes the answer's text")
    return True


def _find_calls(messages: Sequence[Message], text: str, what: str) -> None:
    """Some templates write the first of several calls only, so names are counted."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    for name, count in Counter(call.get("function", call).get("name", "") for call in calls).items():
        if text.count(name) < count:
            few = f"{what} ({name!r})" if name not in text else f"some of {what} ({name!r})"
            raise RowError(f"the model's chat template leaves out {few}; take a model whose template writes tool calls")
