"""What a template writes as a call is read as that call, however it is cut into pieces; what is no call stays text."""

import json
import random
from typing import Any

import pytest

from tests.serve.http.talking import renderer_of, tokenizer_of
from tests.templates import TEMPLATES
from tunesmith.serve.ask import End, Token
from tunesmith.serve.http.answers import Answer, Piece
from tunesmith.serve.http.calls import Calls, Value
from tunesmith.serve.http.reading import Reading, reading_of
from tunesmith.serve.http.text import vocabulary_of
from tunesmith.serve.http.tools import Form

CALLING = [family for family in TEMPLATES if reading_of(renderer_of(family), True).form is not None]
SEVERAL = [family for family in CALLING if (written := reading_of(renderer_of(family), True).written) and written.joint is not None]
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"city": "Genève"},
    {"text": 'a "quoted" } brace, a \\ slash\nand </tool_call> a line', "deep": {"list": [1, 2.5, None, True, {"x": "[]"}]}},
    {"code": "def f():\n    return {'a': 1}  # 你好 🙂"},
]
HERMES = Form(("<tool_call>",), "</tool_call>", False, "")
BARE = Form(("",), "", False, "")


def call(name: str, arguments: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"type": "function", "id": f"idofcall{number}", "function": {"name": name, "arguments": arguments}}


def spelled(family: str, calls: list[dict[str, Any]], content: str = "", thought: str = "") -> str:
    """What the model is trained to answer, without its stop token."""
    message = {"role": "assistant", "content": content, "tool_calls": calls} | ({"reasoning_content": thought} if thought else {})
    renderer = renderer_of(family)
    text = renderer.answer([{"role": "user", "content": "Hi"}, message])
    return text.removesuffix(next(token for token in renderer.stop_tokens if text.endswith(token)))


def read(family: str, text: str, *, opened: bool = False, names: tuple[str, ...] = ("weather", "search")) -> list[Piece]:
    tokenizer = tokenizer_of(family)
    answer = Answer(vocabulary_of(tokenizer), reading=reading_of(renderer_of(family), True), opened=opened, names=names)
    pieces = [piece for token in tokenizer(text, add_special_tokens=False)["input_ids"] for piece in answer.add(Token(token))]
    return pieces + answer.end(End("stop"))


def told(pieces: list[Piece]) -> tuple[str, str, list[tuple[str, Any]]]:
    """(thinking, content, calls)."""
    texts = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("thought", "content")}
    assert not any(piece.kind == "broken" for piece in pieces)
    names = [piece.text for piece in pieces if piece.kind == "call"]
    arguments = ["".join(p.text for p in pieces if p.kind == "arguments" and p.index == index) for index in range(len(names))]
    return texts["thought"], texts["content"], [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def test_the_families_whose_templates_write_calls():
    assert set(CALLING) == {"qwen2.5", "deepseek-r1", "llama-3.2", "mistral-v3", "glm", "gpt-oss"}
    assert set(SEVERAL) == {"qwen2.5", "mistral-v3"}


@pytest.mark.parametrize("family", CALLING)
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_a_rendered_call_is_read_as_that_call(family, arguments):
    text = spelled(family, [call("weather", arguments)])
    opened = family == "deepseek-r1"  # its prompt opens the thinking, which the answer closes
    assert told(read(family, text, opened=opened)) == ("", "", [("weather", arguments)])


@pytest.mark.parametrize("family", SEVERAL)
def test_several_calls_are_read(family):
    calls = [("weather", ARGUMENTS[1]), ("search", ARGUMENTS[2]), ("weather", ARGUMENTS[0])]
    text = spelled(family, [call(name, arguments, n) for n, (name, arguments) in enumerate(calls)])
    assert told(read(family, text)) == ("", "", calls)


def test_text_beside_calls_and_thinking_in_front_of_them():
    text = spelled("qwen2.5", [call("weather", {"city": "Paris"})], "Let me look.", "They want the weather.")
    assert told(read("qwen2.5", text)) == ("They want the weather.", "Let me look.", [("weather", {"city": "Paris"})])
    text = spelled("gpt-oss", [call("weather", {"city": "Paris"})], "", "They want the weather.")
    assert told(read("gpt-oss", text)) == ("They want the weather.", "", [("weather", {"city": "Paris"})])


def test_harmony_as_gpt_oss_itself_writes_it():
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather json<|message|>"
    text += '{"city": "Rome"}<|call|>'
    assert told(read("gpt-oss", text)) == ("Hm.", "", [("weather", {"city": "Rome"})])


def test_a_special_token_that_is_spelled_opens_no_call():
    tokenizer = tokenizer_of("mistral-v3")
    answer = Answer(vocabulary_of(tokenizer), reading=reading_of(renderer_of("mistral-v3"), True), names=("weather",))
    text = '[TOOL_CALLS] [{"name": "weather", "arguments": {}}]'
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    pieces = [piece for token in ids for piece in answer.add(Token(token))] + answer.end(End("stop"))
    assert told(pieces) == ("", text, [])


# --- the parser itself, cut at random places ---


def events(form: Form, text: str, names: tuple[str, ...] = ("weather",), *, cut: bool = False, seed: int = 0) -> list[tuple[str, str]]:
    """Neighbours of one kind are joined."""
    calls, numbers, at = Calls(form, names), random.Random(seed), 0
    found = []
    while at < len(text):
        size = numbers.choice([1, 1, 2, 3, 8, 50])
        found += calls.add(text[at : at + size])
        at += size
    joined: list[tuple[str, str]] = []
    for event in [*found, *calls.end(cut=cut)]:
        if joined and joined[-1][0] == event.kind and event.kind in ("said", "arguments"):
            joined[-1] = (event.kind, joined[-1][1] + event.text)
        else:
            joined.append((event.kind, event.text))
    return joined


def one(name: str, arguments: str) -> list[tuple[str, str]]:
    return [("call", name), ("arguments", arguments), ("done", "")]


CASES = [
    (HERMES, "plain text", [("said", "plain text")]),
    (HERMES, "ends in blanks \n", [("said", "ends in blanks \n")]),
    (HERMES, "a < b <tool", [("said", "a < b <tool")]),
    (HERMES, '<tool_call>{"name":"weather","arguments":{"a":1}}</tool_call>', one("weather", '{"a":1}')),
    (HERMES, '<tool_call>\n{"arguments": {"a": 1}, "name": "weather"}\n</tool_call>\n', one("weather", '{"a": 1}')),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"a\\": 1}"}</tool_call>', one("weather", '{"a": 1}')),
    (HERMES, '<tool_call>{"name": "weather"}</tool_call>', one("weather", "{}")),
    (HERMES, '<tool_call>{"name": "unheard", "parameters": {"a": 1}}', one("unheard", '{"a": 1}')),
    (
        HERMES,
        '<tool_call>{"type": "function", "function": {"name": "weather", "arguments": {"a": {}}}}</tool_call> So.',
        [*one("weather", '{"a": {}}'), ("said", "So.")],
    ),
    # a brace that is missing costs nothing: name and arguments are whole
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"a": 1}\n</tool_call>', one("weather", '{"a": 1}')),
    (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call><tool_call>{"name": "weather", "arguments": {"b": []}}</tool_call>',
        one("weather", "{}") + one("weather", '{"b": []}'),
    ),
    # what is no call stays text, mark and all
    (HERMES, "Say <tool_call> to call.", [("said", "Say <tool_call> to call.")]),
    (HERMES, '<tool_call>{"city": "Paris"}</tool_call>', [("said", '<tool_call>{"city": "Paris"}</tool_call>')]),
    (HERMES, "<tool_call>{name: weather}</tool_call>", [("said", "<tool_call>{name: weather}</tool_call>")]),
    (HERMES, '<tool_call>{"name": "weather"', [("said", '<tool_call>{"name": "weather"')]),
    (BARE, '{"name": "weather", "parameters": {"a": 1}}', one("weather", '{"a": 1}')),
    (
        BARE,
        '\n{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": {"b": 2}}',
        one("weather", "{}") + one("weather", '{"b": 2}'),
    ),
    (BARE, '{"name": "Ada", "parameters": {}}', [("said", '{"name": "Ada", "parameters": {}}')]),
    (BARE, '{"answer": 42} and more', [("said", '{"answer": 42} and more')]),
    (BARE, '{"answer": [4', [("said", '{"answer": [4')]),
    (BARE, 'So: {"name": "weather", "parameters": {}}', [("said", 'So: {"name": "weather", "parameters": {}}')]),
    (Form(("",), "", True, "\n"), 'weather\n{"a": 1}', one("weather", '{"a": 1}')),
    (Form(("",), "", True, "\n"), "weather is nice", [("said", "weather is nice")]),
    (Form(("",), "", True, "\n"), "The weather\n{", [("said", "The weather\n{")]),
    (Form(("<|python_tag|>", ""), "", False, ""), '<|python_tag|>{"name": "weather", "parameters": {}}', one("weather", "{}")),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES, ids=range(len(CASES)))
def test_cases(form, text, expected):
    for seed in range(20):
        assert events(form, text, seed=seed) == expected
    assert [each for each in events(form, text, cut=True) if each[0] == "call"] == [each for each in expected if each[0] == "call"]


def test_a_call_whose_arguments_are_no_json_is_broken_with_its_text():
    text = '<tool_call>{"name": "weather", "arguments": {"city": Paris}}</tool_call>'
    for seed in range(20):
        found = events(HERMES, text, seed=seed)
        kinds = [kind for kind, _ in found]
        assert kinds == ["call", "arguments", "broken", "said"] and found[2][1] + found[3][1] == text


def test_a_call_that_the_limit_cuts_stays_a_call():
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Par'
    assert events(HERMES, text, cut=True) == one("weather", '{"city": "Par')
    assert events(HERMES, text)[-1] == ("broken", text)


def test_an_object_ends_at_its_own_brace():
    assert Value().end('{"a": "}", "b": {"c": "\\"}"}} {') == 29
    assert Value().end('{"a": [1, 2') == -1
    bad = Value()
    assert bad.end("{x") == 1 and bad.bad


def test_reading_is_made_once():
    assert isinstance(reading_of(renderer_of("qwen2.5"), True), Reading)
    assert reading_of(renderer_of("qwen2.5"), True) is reading_of(renderer_of("qwen2.5"), True)
