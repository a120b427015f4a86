import json
from typing import Any

import pytest

from tests.shared import SHARED, needs, read
from tunesmith.data.formats.sharegpt import ROLES, conversation_of, recognises, to_sample
from tunesmith.data.sample import RowError

HUMAN = {"from": "human", "value": "q"}
GPT = {"from": "gpt", "value": "a"}
CALL = {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'}
SEEN = {"from": "observation", "value": "18"}
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def messages(*turns, **more):
    return list(to_sample({"conversations": list(turns)} | more, "f:1").messages)


def test_a_conversation():
    assert messages({"from": "system", "value": "s"}, HUMAN, GPT, HUMAN, GPT) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert messages(HUMAN, GPT, system="s")[0] == {"role": "system", "content": "s"}
    assert to_sample({"conversation": [HUMAN, GPT]}, "f:1") == to_sample({"conversations": json.dumps([HUMAN, GPT])}, "f:1")


@pytest.mark.parametrize(
    ("said", "role"), [("user", "user"), ("Human", "user"), ("GPT", "assistant"), ("bot", "assistant"), ("Model ", "assistant")]
)
def test_other_names_of_roles(said, role):
    got = messages({"from": said, "value": "x"}, GPT) if role == "user" else messages(HUMAN, {"from": said, "value": "x"})
    assert {"role": role, "content": "x"} in got


@pytest.mark.parametrize("said", [name for name, role in ROLES.items() if role == "tool"])
def test_a_call_and_what_came_back(said):
    assert messages(HUMAN, CALL, {"from": said, "value": "18"}, GPT)[1:3] == [
        {"role": "assistant", "content": "", "tool_calls": [WEATHER]},
        {"role": "tool", "content": "18"},
    ]


def test_calls_in_every_spelling():
    parsed = json.loads(CALL["value"])
    as_text = json.dumps(parsed | {"arguments": json.dumps(parsed["arguments"])})
    value: Any
    for value in (CALL["value"], parsed, [parsed], json.dumps([parsed]), as_text):
        assert messages(HUMAN, CALL | {"value": value})[1]["tool_calls"] == [WEATHER]
    assert messages(HUMAN, CALL | {"value": [parsed, parsed]}, SEEN, SEEN, GPT)[1]["tool_calls"] == [WEATHER, WEATHER]
    assert messages(HUMAN, CALL, CALL, SEEN, SEEN, GPT)[1]["tool_calls"] == [WEATHER, WEATHER]
    assert messages(HUMAN, CALL, {"from": "observation", "value": {"degrees": 18}}, GPT)[2]["content"] == '{"degrees":18}'


def test_what_is_said_and_called_is_one_message():
    assert messages(HUMAN, GPT, CALL)[1] == {"role": "assistant", "content": "a", "tool_calls": [WEATHER]}


def test_thinking_in_front_of_a_call_stays_in_front():
    thinking = CALL | {"value": f"<think>\nParis?\n</think>\n\n{CALL['value']}"}
    assert messages(HUMAN, thinking)[1] == {"role": "assistant", "content": "", "reasoning_content": "Paris?", "tool_calls": [WEATHER]}
    answer = messages(HUMAN, {"from": "gpt", "value": "<think>\nhm\n</think>\n\na"})[1]
    assert answer["content"] == "<think>\nhm\n</think>\n\na"


def test_weights_and_other_keys_of_turns():
    got = messages(HUMAN | {"loss": True}, GPT | {"loss": False, "emotion": "joy"}, HUMAN, GPT | {"weight": 1})
    assert [message.get("learn") for message in got] == [None, False, None, None]


def test_tools_from_a_text_or_a_list():
    schema = {"name": "weather", "parameters": {}}
    wrapped = {"type": "function", "function": schema}
    for tools in ([schema], json.dumps([schema]), [wrapped]):
        assert to_sample({"conversations": [HUMAN, GPT], "tools": tools}, "f:1").tools == (wrapped,)
    assert to_sample({"conversations": [HUMAN, GPT], "tools": "[]"}, "f:1").tools == ()


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "'conversations' is empty"),
        ([GPT, HUMAN, GPT], "begins with an assistant message"),
        ([HUMAN, GPT, HUMAN], "ends with a user message"),
        ([HUMAN, GPT, GPT], "messages 2 and 3 are both assistant"),
        ([HUMAN, GPT, SEEN, GPT], "message 3 is a tool's answer, but the assistant called no tool"),
        ([HUMAN, {"from": "narrator", "value": "x"}], "turn 2: unknown role 'narrator' in 'from'; roles are system, human, user"),
        ([HUMAN, {"from": 3, "value": "x"}], "turn 2: unknown role 3"),
        ([HUMAN, {"value": "x"}], r"turn 2: no 'from' \(the turn has value\)"),
        ([HUMAN, {"from": "gpt"}], "turn 2: no 'value'"),
        ([HUMAN, {"role": "assistant", "content": "a"}], "turn 2: no 'from' and no 'value'"),
        ([HUMAN, "x"], "turn 2: the text 'x', not a turn"),
        ([HUMAN, GPT | {"value": " "}], "turn 2: the assistant's answer is blank"),
        ([HUMAN, GPT | {"value": ["a"]}], "turn 2: 'value' is a list of 1"),
        ([HUMAN, CALL | {"value": '{"name": "weather"'}], "turn 2: the function call is no JSON"),
        ([HUMAN, CALL | {"value": "[]"}], "turn 2: the function call is an empty list"),
        ([HUMAN, CALL | {"value": '{"arguments": {}}'}], "turn 2: tool call 1 is an object with arguments"),
        ([HUMAN, GPT | {"weight": 0.5}], "turn 2: 'weight' is the number 0.5"),
        ([HUMAN, GPT | {"loss": False}], "every assistant message has weight 0"),
    ],
)
def test_reasons(turns, words):
    with pytest.raises(RowError, match=words):
        messages(*turns)


def test_rows_of_another_kind_are_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"label": True}, "KTO"),
        ({"images": ["a.png"]}, "'images' is a list of 1: models are trained on text only"),
    ]
    for more, words in cases:
        with pytest.raises(RowError, match=words):
            messages(HUMAN, GPT, **more)
    assert len(messages(HUMAN, GPT, images=[], label="greeting")) == 2


def test_either_kind_of_turns():
    assert conversation_of([HUMAN], "chosen") == conversation_of([{"role": "user", "content": "q"}], "chosen")
    with pytest.raises(RowError, match="chosen turn 1: unknown role"):
        conversation_of([{"from": "x", "value": "q"}], "chosen")


def test_recognises():
    values: dict[str, Any]
    for values in ({"conversations": [HUMAN]}, {"messages": [HUMAN], "id": 1}, {"conversations": json.dumps([HUMAN])}):
        assert recognises(set(values), values)
    for values in (
        {"conversations": [{"role": "user", "content": "q"}]},
        {"conversations": []},
        {"conversations": "human: hi"},
        {"conversations": [HUMAN], "chosen": GPT},
        {"conversations": [HUMAN, GPT], "label": False},
    ):
        assert not recognises(set(values), values)


@needs("llamafactory_demo")
@pytest.mark.parametrize(
    ("file", "good", "bad"),
    [
        ("llamafactory_demo/glaive_toolcall_en_demo.json", 300, []),
        # the assistant writes its call as text, and an observation follows
        (
            "llamafactory_demo/glaive_toolcall_zh_demo.json",
            298,
            ["message 3 is a tool's answer, but the assistant called no tool before it"] * 2,
        ),
        ("sharegpt_identity/dummy_conversation.json", 500, []),
    ],
)
def test_real_files(file, good, bad):
    samples, report = read(file)
    assert (report.format, len(samples), [row.reason for row in report.bad]) == ("sharegpt", good, bad)
    rows = json.loads((SHARED / file).read_text(encoding="utf-8"))
    turns = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "gpt"]
    learned = [message["content"] for sample in samples for message in sample.messages if message["role"] == "assistant"]
    assert {text for text in learned if text} <= set(turns)
    calls = [call for sample in samples for message in sample.messages for call in message.get("tool_calls", ())]
    assert len(calls) == sum(turn["from"] == "function_call" for row in rows for turn in row["conversations"])
