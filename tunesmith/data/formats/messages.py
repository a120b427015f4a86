r"""A conversation, as OpenAI's interface and chat templates take it.

    {"messages": [{"role": "system", "content": "Be brief."},
                  {"role": "user", "content": "What is the weather in Paris?"},
                  {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function",
                      "function": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"}}]},
                  {"role": "tool", "tool_call_id": "c1", "content": "18 degrees"},
                  {"role": "assistant", "content": "18 degrees.", "reasoning_content": "The tool says 18."}],
     "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}]}

The key may also be `conversations` or `conversation`. Roles are system (or developer), user, assistant, tool (or function). Content is a
text or a list of text parts. `"weight": 0` on an assistant message feeds it without learning it. A system prompt may
stand in a column `system` of its own.
"""

import json
from typing import Any

from tunesmith.data.fields import describe, doubts, json_text, judged, listed, optional_text, parsed_list, refuse_media
from tunesmith.data.sample import ROLES, Message, RowError, Sample

COLUMNS = ("messages", "conversations", "conversation", "system", "tools", "functions")
NEEDED = ("messages",)
KEYS = ("messages", "conversations", "conversation")
THINKING = ("reasoning_content", "reasoning", "thinking")
PARTS = ("text", "value", "thinking", "reasoning")  # where a content part keeps its text
OPEN, CLOSE = "<think>", "</think>"
WEIGHTS = ("weight", "loss_weight", "loss")

ALIASES = {"developer": "system", "function": "tool"}

# role before -> roles that may follow; "" is the beginning
FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    key = next((key for key in KEYS if key in columns), None)
    if key is None or {"chosen", "rejected"} & columns or judged(values) is not None:
        return False
    turns = listed(values[key])
    if turns and isinstance(turns[0], dict):
        return "role" in turns[0] or not {"from", "value"} <= set(turns[0])
    return key == "messages"


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    refuse_judged(values)
    refuse_media(values)
    key = next((key for key in KEYS if key in values), None)
    if key is None:
        raise RowError(f"no 'messages' (the row has {', '.join(map(str, values))})")
    turns = parsed_list(values[key], key)
    if not turns:
        raise RowError(f"{key!r} is empty: there is no conversation")
    conversation = with_system(messages_of(turns), optional_text(values, "system"), key)
    check_turns(conversation)
    tools = tools_of(values.get("tools") or values.get("functions"))
    return Sample(origin, tuple(conversation), tools, notes=doubts(values))


def messages_of(turns: list[Any], key: str = "") -> list[Message]:
    """Messages in our shape, whatever order they stand in. Raises RowError with the message's number (1 is the first)."""
    where = f"{key} message" if key else "message"
    conversation = []
    for number, turn in enumerate(turns, start=1):
        try:
            conversation.append(message_of(turn))
        except RowError as error:
            raise RowError(f"{where} {number}: {error}") from None
    return conversation


def with_system(conversation: list[Message], system: str, key: str) -> list[Message]:
    """The conversation behind a system prompt of its own column, "" for none. Raises RowError where it has one already."""
    if not system:
        return conversation
    if conversation[0]["role"] == "system":
        raise RowError(f"a system prompt stands both in 'system' and in {key!r}")
    return [{"role": "system", "content": system}, *conversation]


def check_turns(conversation: list[Message]) -> None:
    """A conversation that a chat template can render and a model can learn from. Raises RowError."""
    before, calls = "", set[str]()
    for number, message in enumerate(conversation, start=1):
        role = message["role"]
        if role not in FOLLOWS[before]:
            raise RowError(_misplaced(role, before, number))
        if role == "tool":
            if before == "assistant" and "tool_calls" not in conversation[number - 2]:
                raise RowError(_misplaced(role, before, number))
            if calls and message.get("tool_call_id", next(iter(calls))) not in calls:
                raise RowError(
                    f"message {number} answers tool call {message['tool_call_id']!r}, which nobody made; "
                    f"there are {', '.join(sorted(calls))}"
                )
        if role == "assistant":
            calls = {call["id"] for call in message.get("tool_calls", ()) if "id" in call}
        before = role
    if before != "assistant":
        raise RowError(
            f"the conversation ends with {_article(before)}; nothing answers it, so the end cannot be learned: "
            "take it out or add the answer"
        )
    if not any(message.get("learn", True) for message in conversation if message["role"] == "assistant"):
        raise RowError("every assistant message has weight 0: there is nothing to learn")


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Function schemas in OpenAI's shape, from a list or its JSON text; bare functions are wrapped. Raises RowError."""
    tools = []
    for number, tool in enumerate(parsed_list(value, "tools"), start=1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"tool {number} is {describe(tool)}; a tool is {{type: function, function: {{name, description, parameters}}}}")
        tools.append(tool if function is not tool else {"type": "function", "function": tool})
    return tuple(tools)


def refuse_judged(values: dict[str, Any]) -> None:
    """Rows judged good or bad hold answers that must not be imitated. Raises RowError."""
    if judged(values) is not None:
        raise RowError(
            "'label' is true or false: preference data (KTO), whose bad answers would be learned as good ones; "
            "keep the rows with true, without the label"
        )


def message_of(turn: Any) -> Message:
    """One message in our shape. Raises RowError."""
    if not isinstance(turn, dict):
        raise RowError(f"{describe(turn)}, not a message with role and content")
    if "role" not in turn:
        if {"from", "value"} <= set(turn):
            raise RowError("a ShareGPT turn (from, value) among OpenAI messages (role, content); a conversation has one shape")
        raise RowError(f"no 'role' (the message has {', '.join(map(str, turn)) or 'nothing'})")
    role = ALIASES.get(turn["role"], turn["role"]) if isinstance(turn["role"], str) else turn["role"]
    if role not in ROLES:
        raise RowError(f"unknown role {turn['role']!r}; roles are {', '.join([*ROLES, *ALIASES])}" + _nearest(turn["role"]))
    said = turn.get("content")
    content, thinking, calls = _content(json_text(said) if role == "tool" and isinstance(said, dict) else said)
    message: Message = {"role": role, "content": content}
    if role == "assistant":
        _assistant(message, turn, thinking, calls)
    elif role == "tool":
        message |= {key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str)}
    elif role == "user" and not content.strip():
        raise RowError(f"the user's message is {'blank' if content else 'empty'}")
    return message


def _assistant(message: Message, turn: dict[str, Any], thinking: str, calls: list[Any]) -> None:
    for key in THINKING:
        value = turn.get(key)
        if value is not None and not isinstance(value, str):
            raise RowError(f"{key!r} is {describe(value)}, not a text")
        thinking = thinking or value or ""
    if thinking.strip():
        message["reasoning_content"] = thinking
    calls = calls + parsed_list(turn.get("tool_calls"), "tool_calls")
    if isinstance(turn.get("function_call"), dict):
        calls.append(turn["function_call"])
    if calls:
        message["tool_calls"] = [_call(call, number) for number, call in enumerate(calls, start=1)]
    _check_answer(message)
    given = next((key for key in WEIGHTS if turn.get(key) is not None), None)
    weight = turn[given] if given else 1
    if weight not in (0, 1):
        raise RowError(f"{given!r} is {describe(weight)}; it is 0 (fed, not learned) or 1")
    if not weight:
        message["learn"] = False


def _check_answer(message: Message) -> None:
    """Raises RowError where an assistant says and calls nothing, or thinks without end."""
    content = message["content"]
    thinks = content.lstrip().startswith(OPEN)
    if thinks and CLOSE not in content:
        raise RowError(f"the assistant's thinking is cut off: {OPEN} is never closed, and nothing is answered")
    if "tool_calls" in message:
        return
    if not content.strip():
        raise RowError(f"the assistant's answer is {'blank' if content else 'empty'}: there is nothing to learn")
    if thinks and not content.rpartition(CLOSE)[2].strip():
        raise RowError("the assistant thinks and then says nothing: there is no answer to learn")


def _content(content: Any) -> tuple[str, str, list[Any]]:
    """Text, thinking and tool calls of a message's content, which may be a list of typed parts."""
    if content is None or isinstance(content, str):
        return content or "", "", []
    if not isinstance(content, list):
        raise RowError(f"'content' is {describe(content)}, not a text or a list of text parts")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        value = next((part[key] for key in PARTS if key in part), None) if isinstance(part, dict) else part
        if kind not in ("text", "reasoning", "thinking", "tool_call"):
            raise RowError(f"a content part of type {kind!r}: models are trained on text only; leave the row out, or the part")
        if kind == "tool_call":
            calls.append(value)
        elif not isinstance(value, str):
            raise RowError(f"a content part whose text is {describe(value)}")
        else:
            (texts if kind == "text" else thoughts).append(value)
    return "".join(texts), "".join(thoughts), calls


def _call(call: Any, number: int) -> dict[str, Any]:
    where = f"tool call {number}"
    if isinstance(call, str):
        call = _json_object(call, where)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(f"{where} is {describe(call)}; a call is {{id, type: function, function: {{name, arguments}}}}")
    arguments = function.get("arguments")
    arguments = {} if arguments is None else arguments
    if isinstance(arguments, str):
        arguments = _json_object(arguments, f"{where} ({function['name']}): arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(f"{where} ({function['name']}): arguments are {describe(arguments)}, not an object of names and values")
    result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result


def _json_object(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} are no JSON ({error}): {text[:60]!r}") from None


def _nearest(role: Any) -> str:
    known = {"bot": "assistant", "gpt": "assistant", "model": "assistant", "ai": "assistant", "human": "user"}
    name = str(role).lower().strip()
    near = name if name in ROLES or name in ALIASES else known.get(name)
    return f"; did you mean {near!r}?" if near else ""


def _article(role: str) -> str:
    return {"system": "a system prompt", "user": "a user message", "assistant": "an assistant message", "tool": "a tool's answer"}[role]


def _misplaced(role: str, before: str, number: int) -> str:
    """Why a message cannot stand there, in words."""
    if role == "system":
        return f"message {number} is a system prompt; a system prompt only stands first"
    if role == "tool":
        return f"message {number} is a tool's answer, but the assistant called no tool before it"
    if not before or before == "system":
        return f"the conversation begins with {_article(role)}; a user message must come first"
    if role == before:
        return f"messages {number - 1} and {number} are both {role} messages: join them, or put the missing turn between them"
    return f"message {number} is {_article(role)} right after {_article(before)}; the assistant must speak between them"
