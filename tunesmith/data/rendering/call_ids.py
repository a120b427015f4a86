"""Ids of tool calls for templates that take none but nine letters or digits (Mistral's): rows often have others, or none."""

import hashlib
import json
import re
from collections.abc import Sequence

from tunesmith.data.sample import Message


def nine_letters(messages: Sequence[Message]) -> list[Message]:
    """Messages in which each tool call's id, and the same id at its result, is nine letters or digits.

    An id of that shape stays. Others become the beginning of their hash; without an id the call's place and text are hashed,
    so that a row always has the same ones. Results without an id take the calls' in order.
    """
    given: list[Message] = []
    waiting: list[str] = []  # calls whose results are to come
    for index, message in enumerate(messages):
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            waiting = [_short(call.get("id") or f"{index} {n} {json.dumps(call, sort_keys=True)}") for n, call in enumerate(calls)]
            message = message | {"tool_calls": [call | {"id": short} for call, short in zip(calls, waiting, strict=True)]}
        elif message["role"] == "tool":
            own = message.get("tool_call_id")
            short = _short(own) if own else waiting[0] if waiting else _short(str(index))
            waiting = [other for other in waiting if other != short]
            message = message | {"tool_call_id": short}
        given.append(message)
    return given


def _short(text: str) -> str:
    return text if re.fullmatch("[A-Za-z0-9]{9}", text) else hashlib.sha256(text.encode()).hexdigest()[:9]
