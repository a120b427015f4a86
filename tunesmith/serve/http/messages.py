"""OpenAI's messages and tools -> those of a Sample (`data/sample.py`), which the renderer takes.

Which roles may follow which is not decided here: the model's own chat template refuses what it cannot write.
"""

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from tunesmith.data.fields import describe
from tunesmith.data.sample import Message
from tunesmith.serve.http.errors import Problem, bad

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool"}
TEXTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}  # kind of a part -> where its text stands
THINKING = ("reasoning_content", "reasoning")


def messages_of(given: Sequence[dict[str, Any]]) -> list[Message]:
    """Raises Problem, which names the field."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(given)]


def tools_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Functions as a chat template takes them. Raises Problem."""
    tools, names = [], set()
    for index, tool in enumerate(given):
        where = f"tools[{index}]"
        if tool.get("type", "function") != "function":
            raise bad(f"{where}: tools of type {tool['type']!r} are not served here; they are functions", f"{where}.type")
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise bad(f"{where}: a tool is {{type: function, function: {{name, description, parameters}}}}", f"{where}.function")
        if not isinstance(function.get("parameters") or {}, dict):
            where += ".function.parameters"
            raise bad(f"{where} is a JSON schema, not {describe(function['parameters'])}", where)
        if function["name"] in names:
            raise bad(f"{where}: a second function {function['name']!r}", f"{where}.function.name")
        names.add(function["name"])
        # `strict` is for the server; a template would show it to the model, which no data trained it with
        shown = {key: value for key, value in function.items() if key != "strict" and value is not None}
        tools.append({"type": "function", "function": shown})
    return tools


def _message(given: dict[str, Any], where: str) -> Message:
    role = ROLES.get(given["role"]) if isinstance(given.get("role"), str) else None
    if role is None:
        raise bad(f"{where}.role is {describe(given.get('role'))}; roles are {', '.join(ROLES)}", f"{where}.role")
    message: Message = {"role": role, "content": _text(given.get("content"), f"{where}.content")}
    if given.get("audio") is not None:
        raise bad(f"{where}.audio is not served here: models read text", f"{where}.audio")
    calls = given.get("tool_calls") or []
    if role == "assistant":
        thinking = next((given[key] for key in THINKING if isinstance(given.get(key), str) and given[key].strip()), "")
        if thinking:
            message["reasoning_content"] = thinking
        if not message["content"] and isinstance(given.get("refusal"), str):
            message["content"] = given["refusal"]
        if calls:
            message["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    elif given.get("content") is None:
        raise bad(f"{where}.content is missing", f"{where}.content")
    if role == "tool" and isinstance(given.get("tool_call_id"), str):
        message["tool_call_id"] = given["tool_call_id"]
    if role != "system" and isinstance(given.get("name"), str):
        message["name"] = given["name"]
    return message


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad(f"{where} is {describe(content)}, not a text or a list of text parts", where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXTS:
            what = f"parts of type {kind!r} are not served here, models read text" if isinstance(kind, str) else "no {type: text, text}"
            raise bad(f"{where}[{index}]: {what}", f"{where}[{index}].type")
        text = part.get(TEXTS[kind])
        if not isinstance(text, str):
            raise bad(f"{where}[{index}].{TEXTS[kind]} is {describe(text)}, not a text", f"{where}[{index}].{TEXTS[kind]}")
        texts.append(text)
    return "".join(texts)


def _calls(given: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise bad(f"{where} is {describe(given)}, not a list", where)
    return [_call(call, f"{where}[{index}]") for index, call in enumerate(given)]


def _call(given: Any, where: str) -> dict[str, Any]:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise bad(f"{where} is {{id, type: function, function: {{name, arguments}}}}", where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{where}.function.arguments")
    if not isinstance(arguments, dict):
        raise _no_object(f"{where}.function.arguments", describe(arguments))
    call: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(given.get("id"), str):
        call["id"] = given["id"]
    return call


def _parsed(text: str, where: str) -> Any:
    try:
        return from_json(text) if text.strip() else {}
    except ValueError as error:
        raise _no_object(where, str(error)) from None


def _no_object(where: str, what: str) -> Problem:
    return bad(f"{where} is not a JSON object: {what}", where)
