"""OpenAI's messages become a sample's."""

from typing import Any

import pytest

from tunesmith.serve.http.errors import Problem
from tunesmith.serve.http.messages import messages_of, tools_of

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def one(**message: Any) -> dict[str, Any]:
    return messages_of([message])[0]


def test_roles_and_parts():
    assert one(role="developer", content="Be brief.") == {"role": "system", "content": "Be brief."}
    assert one(role="user", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], name="Ada") == {
        "role": "user",
        "content": "ab",
        "name": "Ada",
    }
    assert one(role="tool", tool_call_id="c1", content="18") == {"role": "tool", "content": "18", "tool_call_id": "c1"}


def test_an_assistant_s_calls_thinking_and_refusal():
    message = one(role="assistant", content=None, tool_calls=[CALL], reasoning_content="Hm.")
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "c1"}]
    assert message["content"] == "" and message["reasoning_content"] == "Hm."
    assert one(role="assistant", content=None, refusal="No.")["content"] == "No."
    empty = CALL | {"function": {"name": "f", "arguments": ""}}
    assert one(role="assistant", tool_calls=[empty])["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "Hi"}, "messages[0].role"),
        ({"role": "boss", "content": "Hi"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": {}}, None),
        ({"role": "assistant", "tool_calls": "f"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"id": "c"}]}, "messages[0].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[]"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_is_wrong_is_named(message, param):
    if param is None:
        assert messages_of([message]) == [{"role": "assistant", "content": ""}]
        return
    with pytest.raises(Problem) as raised:
        messages_of([message])
    assert raised.value.param == param and param.split(".")[0] in raised.value.message


def test_tools():
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True, "description": None}
    assert tools_of([{"type": "function", "function": function}]) == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    ]
    for wrong in ({"type": "custom"}, {"type": "function"}, {"function": {"name": ""}}, {"function": {"name": "f", "parameters": [1]}}):
        with pytest.raises(Problem):
            tools_of([wrong])
    with pytest.raises(Problem, match="second function"):
        tools_of([{"function": {"name": "f"}}, {"function": {"name": "f"}}])
