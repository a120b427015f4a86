import json
from typing import Any

import pytest

from tunesmith.data.formats.messages import recognises, to_sample
from tunesmith.data.sample import RowError

USER = {"role": "user", "content": "q"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
TOOL = {"role": "tool", "tool_call_id": "c1", "content": "18"}


def messages(*turns):
    return to_sample({"messages": list(turns)}, "f:1").messages


def test_a_conversation_stays_as_it_is():
    assert messages(SYSTEM, USER, ASSISTANT, USER, ASSISTANT) == (SYSTEM, USER, ASSISTANT, USER, ASSISTANT)
    assert to_sample({"conversations": [USER, ASSISTANT]}, "f:1").messages == (USER, ASSISTANT)
    assert to_sample({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, "f:1").messages == (
        USER,
        ASSISTANT,
    )


def test_a_system_prompt_in_a_column_of_its_own():
    assert to_sample({"messages": [USER, ASSISTANT], "system": "s"}, "f:1").messages == (SYSTEM, USER, ASSISTANT)
    assert to_sample({"messages": [USER, ASSISTANT], "system": None}, "f:1").messages == (USER, ASSISTANT)
    with pytest.raises(RowError, match="both in 'system' and in 'messages'"):
        to_sample({"messages": [SYSTEM, USER, ASSISTANT], "system": "s"}, "f:1")


def test_other_names_of_roles():
    assert messages(SYSTEM | {"role": "developer"}, USER, ASSISTANT)[0] == SYSTEM
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    answered = messages(USER, call, {"role": "function", "name": "f", "content": "1"}, ASSISTANT)
    assert answered[1]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    assert answered[2] == {"role": "tool", "content": "1", "name": "f"}


def test_tool_calls_keep_their_ids_and_have_arguments_as_objects():
    got = messages(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, TOOL, ASSISTANT)
    assert got[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
    }
    assert got[2] == TOOL
    plain = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}
    assert messages(USER, plain)[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}


def test_parts_thinking_and_weights():
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages(USER, {"role": "assistant", "content": parts})[1] == {"role": "assistant", "content": "ab", "reasoning_content": "hm"}
    assert messages({"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT)[0] == USER
    for key in ("reasoning_content", "thinking", "reasoning"):
        assert messages(USER, ASSISTANT | {key: "hm"})[1]["reasoning_content"] == "hm"
    for part in ({"type": "thinking", "thinking": "hm"}, {"type": "reasoning", "text": "hm"}, {"type": "reasoning", "reasoning": "hm"}):
        answer = {"role": "assistant", "content": [part, {"type": "text", "text": "a"}]}
        assert messages(USER, answer)[1] == ASSISTANT | {"reasoning_content": "hm"}
    assert messages(USER, ASSISTANT | {"content": "<think>\nhm\n</think>\n\na"})[1]["content"] == "<think>\nhm\n</think>\n\na"
    assert messages(USER, ASSISTANT | {"loss": False, "weight": None}, USER, ASSISTANT | {"loss": True})[1]["learn"] is False
    got = messages(USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1})
    assert [message.get("learn") for message in got] == [None, False, None, None]


def test_thinking_goes_with_calls_and_results_may_be_objects():
    call = {"role": "assistant", "reasoning_content": "Paris?", "content": None, "tool_calls": [CALL]}
    got = messages(USER, call, TOOL | {"content": {"degrees": 18}}, ASSISTANT)
    assert (got[1]["reasoning_content"], got[1]["content"], len(got[1]["tool_calls"])) == ("Paris?", "", 1)
    assert got[2]["content"] == '{"degrees":18}'
    part = {
        "role": "assistant",
        "content": [{"type": "reasoning", "value": "hm"}, {"type": "tool_call", "value": json.dumps(CALL["function"])}],
    }
    assert messages(USER, part)[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    nothing = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": None}}]}
    assert messages(USER, nothing)[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}


def test_rows_with_pictures_are_refused():
    for key in ("images", "videos", "audios"):
        with pytest.raises(RowError, match=f"'{key}' is a list of 1: models are trained on text only"):
            to_sample({"messages": [USER, ASSISTANT], key: ["a.png"]}, "f:1")


def test_tools_from_a_list_or_a_text_wrapped_or_bare():
    schema = {"name": "weather", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": schema}
    tools: Any
    for tools in ([wrapped], [schema], '[{"name": "weather", "parameters": {"type": "object"}}]'):
        assert to_sample({"messages": [USER, ASSISTANT], "tools": tools}, "f:1").tools == (wrapped,)
    for tools in (None, "", []):
        assert to_sample({"messages": [USER, ASSISTANT], "tools": tools}, "f:1").tools == ()
    with pytest.raises(RowError, match="tool 1 is"):
        to_sample({"messages": [USER, ASSISTANT], "tools": ["weather"]}, "f:1")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "'messages' is empty"),
        ([ASSISTANT, USER, ASSISTANT], "begins with an assistant message"),
        ([SYSTEM, ASSISTANT], "begins with an assistant message"),
        ([USER, USER, ASSISTANT], "messages 1 and 2 are both user messages"),
        ([USER, ASSISTANT, ASSISTANT], "messages 2 and 3 are both assistant messages"),
        ([USER], "ends with a user message"),
        ([USER, ASSISTANT, USER], "ends with a user message"),
        ([USER, SYSTEM, ASSISTANT], "message 2 is a system prompt; a system prompt only stands first"),
        ([USER, TOOL, ASSISTANT], "message 2 is a tool's answer, but the assistant called no tool"),
        ([USER, ASSISTANT, TOOL, ASSISTANT], "message 3 is a tool's answer, but the assistant called no tool"),
        ([USER, ASSISTANT | {"tool_calls": [CALL]}, TOOL, USER, ASSISTANT], "message 4 is a user message right after a tool's answer"),
        ([USER, ASSISTANT | {"tool_calls": [CALL]}, TOOL | {"tool_call_id": "c9"}, ASSISTANT], "answers tool call 'c9'.*there are c1"),
        ([USER, ASSISTANT | {"role": "ASSISTANT"}], "message 2: unknown role 'ASSISTANT'.*did you mean 'assistant'"),
        ([{"role": "human", "content": "q"}], "unknown role 'human'; roles are system, user, assistant, tool.*did you mean 'user'"),
        ([{"role": "moderator", "content": "q"}], "unknown role 'moderator'; roles are .*function$"),
        ([{"from": "human", "value": "q"}], "a ShareGPT turn"),
        ([{"content": "q"}], "message 1: no 'role'"),
        (["q"], "message 1: the text 'q', not a message"),
        ([USER | {"content": " "}, ASSISTANT], "message 1: the user's message is blank"),
        ([USER, ASSISTANT | {"content": None}], "message 2: the assistant's answer is empty"),
        ([USER, ASSISTANT | {"content": 4}], "'content' is the number 4"),
        ([USER | {"content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT], "a content part of type 'image_url'"),
        ([USER, ASSISTANT | {"weight": 0.5}], "'weight' is the number 0.5"),
        ([USER, ASSISTANT | {"loss": 0.5}], "'loss' is the number 0.5"),
        ([USER, ASSISTANT | {"content": "<think>\nhm"}], "message 2: the assistant's thinking is cut off: <think> is never closed"),
        ([USER, ASSISTANT | {"content": "<think>\nhm\n</think>\n\n"}], "thinks and then says nothing"),
        ([USER, ASSISTANT | {"content": [{"type": "thinking", "thinking": "hm"}]}], "message 2: the assistant's answer is empty"),
        ([USER | {"content": [{"type": "input_audio", "input_audio": {}}]}, ASSISTANT], "of type 'input_audio'.*text only"),
        ([USER | {"content": [{"type": "video", "video": "a"}]}, ASSISTANT], "of type 'video'"),
        ([USER, ASSISTANT | {"weight": 0}], "every assistant message has weight 0"),
        ([USER, ASSISTANT | {"reasoning_content": ["x"]}], "'reasoning_content' is a list of 1"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1'}}]}], "arguments are no JSON"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], "not an object of names"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {}}]}], "tool call 1 is"),
    ],
)
def test_reasons(turns, words):
    with pytest.raises(RowError, match=words):
        to_sample({"messages": turns}, "f:1")


def test_judged_rows_are_refused():
    with pytest.raises(RowError, match="KTO"):
        to_sample({"messages": [USER, ASSISTANT], "label": False}, "f:1")
    assert to_sample({"messages": [USER, ASSISTANT], "label": "greeting"}, "f:1").messages == (USER, ASSISTANT)


def test_recognises():
    values: dict[str, Any]
    for values in ({"messages": [USER]}, {"messages": []}, {"messages": "[]"}, {"conversations": [USER]}):
        assert recognises(set(values), values)
    assert recognises({"conversation"}, {"conversation": [USER]})
    for values in (
        {"messages": [USER, ASSISTANT], "label": True},
        {"conversations": [{"from": "human", "value": "q"}]},
        {"conversations": "x"},
        {"messages": [USER], "chosen": 1, "rejected": 2},
        {"text": "x"},
    ):
        assert not recognises(set(values), values)
