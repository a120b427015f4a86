r"""Conversations of ShareGPT's shape, as Vicuna, LLaMA-Factory and many data sets on the hubs have them.

    {"conversations": [{"from": "human", "value": "What is the weather in Paris?"},
                       {"from": "function_call", "value": "{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}"},
                       {"from": "observation", "value": "18 degrees"},
                       {"from": "gpt", "value": "It is 18 degrees."}],
     "system": "Be brief.",
     "tools": "[{\"name\": \"weather\", \"parameters\": {}}]"}

The key may also be `conversation` or `messages`. A function call is the assistant's: the JSON text of one call or of a list
of calls, behind its thinking in <think> tags where it has any. An observation answers the call before it.
"""

import json
import re
from typing import Any

from tunesmith.data.fields import describe, doubts, json_text, judged, listed, optional_text, parsed_list, refuse_media
from tunesmith.data.formats import messages
from tunesmith.data.sample import Message, RowError, Sample

COLUMNS = ("conversations", "conversation", "messages", "system", "tools")
NEEDED = ("conversations",)
KEYS = ("conversations", "conversation", "messages")

# What a turn's `from` says, in lower case -> the message's role; a call is the assistant's, with the call as JSON text.
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    key = next((key for key in KEYS if key in columns), None)
    if key is None or {"chosen", "rejected"} & columns or judged(values) is not None:
        return False
    turns = listed(values[key])
    return bool(turns) and is_turn(turns[0])


def is_turn(value: Any) -> bool:
    """Whether a value is a turn of this shape rather than an OpenAI message."""
    return isinstance(value, dict) and {"from", "value"} <= set(value) and "role" not in value


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    messages.refuse_judged(values)
    refuse_media(values)
    key = next((key for key in KEYS if key in values), None)
    if key is None:
        raise RowError(f"no 'conversations' (the row has {', '.join(map(str, values))})")
    turns = parsed_list(values[key], key)
    if not turns:
        raise RowError(f"{key!r} is empty: there is no conversation")
    conversation = messages.with_system(messages_of(turns), optional_text(values, "system"), key)
    messages.check_turns(conversation)
    return Sample(origin, tuple(conversation), messages.tools_of(values.get("tools")), notes=doubts(values))


def conversation_of(turns: list[Any], key: str) -> list[Message]:
    """Messages of turns of this shape or of OpenAI's, whichever the first is. Raises RowError."""
    return messages_of(turns, key) if turns and is_turn(turns[0]) else messages.messages_of(turns, key)


def messages_of(turns: list[Any], key: str = "") -> list[Message]:
    """Messages in our shape, in the order of the turns. Raises RowError with the turn's number (1 is the first)."""
    where = f"{key} turn" if key else "turn"
    conversation: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        try:
            message, call = _message(turn)
        except RowError as error:
            raise RowError(f"{where} {number}: {error}") from None
        before = conversation[-1] if conversation else {}
        alike = "reasoning_content" not in message and before.get("learn") == message.get("learn")
        if call and before.get("role") == "assistant" and alike:
            # what it says and what it calls, or several calls one after another, are one message in a chat template
            conversation[-1] = before | {"tool_calls": [*before.get("tool_calls", ()), *message["tool_calls"]]}
        else:
            conversation.append(message)
    return conversation


def _message(turn: Any) -> tuple[Message, bool]:
    """The message that a turn is, and whether it is a function call."""
    if not isinstance(turn, dict):
        raise RowError(f"{describe(turn)}, not a turn with from and value")
    absent = [key for key in ("from", "value") if key not in turn]
    if absent:
        raise RowError(f"no {' and no '.join(map(repr, absent))} (the turn has {', '.join(map(str, turn)) or 'nothing'})")
    said, value = turn["from"], turn["value"]
    role = ROLES.get(said.strip().lower().replace("-", "_").replace(" ", "_")) if isinstance(said, str) else None
    if role is None:
        raise RowError(f"unknown role {said!r} in 'from'; roles are {', '.join(ROLES)}")
    weights = {name: turn[name] for name in messages.WEIGHTS if name in turn}
    if role == "call":
        thought, calls = _calls(value)
        return messages.message_of({"role": "assistant", "tool_calls": calls, "reasoning_content": thought} | weights), True
    if role == "tool":
        value = json_text(value)
    elif not isinstance(value, str):
        raise RowError(f"'value' is {describe(value)}, not a text")
    return messages.message_of({"role": role, "content": value} | weights), False


def _calls(value: Any) -> tuple[str, list[Any]]:
    """The thinking in front of a function call, and the calls. Raises RowError."""
    thought = ""
    if isinstance(value, str):
        if found := THOUGHT.match(value):
            thought, value = found[1].strip("\n"), value[found.end() :]
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"the function call is no JSON ({error}): {value[:60]!r}") from None
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError("the function call is an empty list")
    return thought, calls
