"""Bodies: what is taken, what is refused, and with which words."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tunesmith.serve.ask import Constraint
from tunesmith.serve.http import wire
from tunesmith.serve.http.errors import Problem, problem_of

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def chat(**fields: Any) -> wire.ChatRequest:
    return wire.ChatRequest.model_validate(wire.read(json.dumps({**CHAT, **fields}).encode()))


def problem(**fields: Any) -> Problem:
    with pytest.raises((Problem, ValidationError)) as raised:
        chat(**fields)
    return problem_of(raised.value)


def test_defaults_are_openai_s():
    asked = chat()
    assert asked.temperature == 1.0 and asked.top_p == 1.0 and asked.n == 1 and asked.limit is None and not asked.stream
    assert asked.sampling() == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "min_tokens": 0,
    }
    assert wire.CompletionRequest.model_validate({"model": "m", "prompt": "x"}).max_tokens == 16


def test_null_is_the_default_and_unknown_fields_are_left_alone():
    asked = chat(temperature=None, stop=None, tools=None, store=True, metadata={"a": "b"}, service_tier="auto", never_heard_of=1)
    assert asked.temperature == 1.0 and asked.stops == [] and asked.tools == []


def test_values_are_carried():
    asked = chat(stop="a", logit_bias={"5": -100}, top_k=-1, max_tokens=3, max_completion_tokens=4, logprobs=True, top_logprobs=2)
    assert asked.stops == ["a"] and asked.sampling()["logit_bias"] == {5: -100} and asked.sampling()["top_k"] == 0
    assert asked.limit == 4 and asked.wanted_logprobs == 2 and chat().wanted_logprobs == -1 and chat(logprobs=True).wanted_logprobs == 0
    assert chat(seed=-5).first_seed() == -5 and {chat().first_seed() for _ in range(4)} != {chat().first_seed()}
    assert chat(reasoning_effort="low", chat_template_kwargs={"enable_thinking": False}).variables == {
        "reasoning_effort": "low",
        "enable_thinking": False,
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"model": ""}, "model"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"chat_template_kwargs": {"a": "<|im_end|>"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(fields, param):
    found = problem(**fields)
    assert found.status == 400 and found.param is not None and found.param.split("[")[0].startswith(param), found.param


def test_all_misfits_are_told_at_once():
    found = problem(temperature=9, top_p=9)
    assert "temperature" in found.message and "top_p" in found.message


@pytest.mark.parametrize(
    ("name", "value"),
    [("audio", {}), ("modalities", ["text", "audio"]), ("functions", [{}]), ("best_of", 2), ("suffix", "x"), ("prompt_logprobs", 1)],
)
def test_what_would_change_the_answer_and_is_not_served_is_refused_by_name(name, value):
    found = problem(**{name: value})
    assert found.status == 400 and found.param == name and found.code == "unsupported_parameter"


def test_harmless_values_of_such_fields_are_taken():
    assert chat(modalities=["text"], best_of=1, suffix="", audio=None, skip_special_tokens=True)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}'])
def test_what_is_no_json_object(raw):
    with pytest.raises(Problem) as raised:
        wire.read(raw)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json", {})),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}}, Constraint("json", {"a": 1})),
        ({"guided_json": '{"a": 1}'}, Constraint("json", {"a": 1})),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["a"]}, Constraint("choice", ["a"])),
        ({"structured_outputs": {"grammar": "start: A"}}, Constraint("lark", "start: A")),
        ({"structured_outputs": {"json": {"a": 1}}}, Constraint("json", {"a": 1})),
        ({"structured_outputs": {"json_object": True}}, Constraint("json", {})),
    ],
)
def test_what_an_answer_must_be(fields, expected):
    assert chat(**fields).constraint() == expected


def test_an_answer_is_held_to_one_thing():
    with pytest.raises(Problem, match="one thing only"):
        chat(guided_regex="a", response_format={"type": "json_object"}).constraint()
    for schema in ("{", "[]"):
        with pytest.raises(Problem):
            chat(guided_json=schema).constraint()


def test_prompts_of_all_shapes():
    def prompts(prompt: Any) -> Any:
        return wire.CompletionRequest.model_validate({"model": "m", "prompt": prompt}).prompts

    assert prompts("a") == ["a"] and prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 0]) == [[1, 0]] and prompts([[1], [2, 3]]) == [[1], [2, 3]]
    wrongs: list[Any] = ["", [], [""], [[]], [-1], [1, "a"], ["a"] * 129]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            prompts(wrong)


def test_a_penalty_that_no_logits_stand_is_refused():
    with pytest.raises(ValidationError, match="repetition_penalty"):
        chat(repetition_penalty=1e-320)


def test_a_format_without_its_schema_says_what_is_missing():
    with pytest.raises(ValidationError, match="json_schema needs its name and schema"):
        chat(response_format={"type": "json_schema"})
