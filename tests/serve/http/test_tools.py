"""The texts around a call, found in what the template writes; and which JSON objects call."""

import json

import pytest

from tests.serve.http.talking import renderer_of
from tunesmith.serve.http.reading import reading_of
from tunesmith.serve.http.tools import Form, Written, call_in, form_of


@pytest.mark.parametrize("family", ["qwen2.5", "deepseek-r1", "llama-3.2", "mistral-v3", "glm", "gpt-oss"])
def test_the_texts_around_a_call_make_up_what_the_template_writes(family):
    written = reading_of(renderer_of(family), True).written
    assert written is not None
    call = {"type": "function", "id": "idofacall", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    answer = renderer_of(family).answer([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert written.text("weather", json.dumps({"city": "Rome"})) in answer


def test_forms_are_told_apart():
    def form(head: str, middle: str, tail: str, tag: bool = False) -> Form:
        return form_of(Written(head, middle, tail, None, "", tag))

    nested = form('[{"type": "function", "function": {"name": "', '", "arguments": ', "}}]")
    assert nested == Form(("",), "", False, "")
    tagged = form('{"name": "', '", "parameters": ', "}", True)
    assert tagged.opens == ("<|python_tag|>", "")
    kimi = form("<|call|>functions.", "<|args|>", "<|end|>")
    assert kimi == Form(("<|call|>functions.",), "<|end|>", True, "<|args|>")


@pytest.mark.parametrize(
    ("value", "called"),
    [
        ({"name": "f", "arguments": {"a": 1}}, ("f", {"a": 1})),
        ({"name": "f", "parameters": '{"a": 1}'}, ("f", {"a": 1})),
        ({"type": "function", "function": {"name": "f", "arguments": {}}}, ("f", {})),
        ({"function": "f", "args": {"a": 1}}, ("f", {"a": 1})),
        ({"name": "f"}, ("f", {})),
        ({"name": "f", "arguments": [1]}, None),
        ({"name": "f", "arguments": "{"}, None),
        ({"name": 3}, None),
        ([], None),
    ],
)
def test_which_objects_call(value, called):
    assert call_in(value) == called
