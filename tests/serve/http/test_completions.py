"""Completions: texts and token ids go on as they are."""

from typing import Any

import pytest

from tests.serve.fake_engine import FakeEngine
from tests.serve.http.talking import says, tokenizer_of
from tests.serve.http.test_chat import chunks, post

PATH = "/v1/completions"


def complete(engine: FakeEngine, family: str = "qwen2.5", **fields: Any) -> Any:
    return post(engine, family, path=PATH, **{"messages": None, **fields})


def ids_of(text: str, family: str = "qwen2.5") -> list[int]:
    return tokenizer_of(family)(text, add_special_tokens=False)["input_ids"]


def test_texts_and_ids():
    engine = FakeEngine(says("qwen2.5", " and more"))
    answer = complete(engine, prompt="One").json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["text"] == " and more"
    assert list(engine.asks[0].prompt_ids) == ids_of("One") and engine.asks[0].max_tokens == 16
    complete(engine, prompt=ids_of("One"))
    assert engine.asks[1].prompt_ids == engine.asks[0].prompt_ids
    both = complete(engine, prompt=["One", "Two two"], n=2, seed=1).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    assert [list(ask.prompt_ids) for ask in engine.asks[2:]] == [ids_of("One")] * 2 + [ids_of("Two two")] * 2
    assert [ask.seed for ask in engine.asks[2:]] == [1, 2, 3, 4]
    assert both["usage"]["prompt_tokens"] == len(ids_of("One")) + len(ids_of("Two two")), "each prompt counts once"


def test_a_document_s_first_token_stands_in_front_once():
    engine = FakeEngine(says("llama-3.2", "."))
    for prompt in ("One", "<|begin_of_text|>One"):
        complete(engine, "llama-3.2", prompt=prompt)
    bos = tokenizer_of("llama-3.2").bos_token_id
    assert [list(ask.prompt_ids) for ask in engine.asks] == [[bos, *ids_of("One", "llama-3.2")]] * 2


def test_marks_of_thinking_and_calls_are_text_here():
    text = "<think>Hm.</think><tool_call>{}</tool_call>"
    assert complete(FakeEngine(says("qwen2.5", text)), prompt="x", max_tokens=99).json()["choices"][0]["text"] == text


def test_echo_and_a_stream():
    engine = FakeEngine(says("qwen2.5", " und 🙂"))
    assert complete(engine, prompt="One", echo=True).json()["choices"][0]["text"] == "One und 🙂"
    parts = chunks(complete(engine, prompt=ids_of("One"), echo=True, stream=True, stream_options={"include_usage": True}))
    assert "".join(part["choices"][0]["text"] for part in parts[:-1]) == "One und 🙂"
    assert parts[-2]["choices"][0]["finish_reason"] == "stop" and parts[-1]["usage"]["completion_tokens"] > 0


def test_logprobs_stand_at_their_places():
    logprobs = complete(FakeEngine(says("qwen2.5", "Hello you")), prompt="x", logprobs=2).json()["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "Hello you" and set(logprobs["token_logprobs"]) == {-0.5}
    assert all("Hello you"[place:].startswith(token) for place, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True))
    assert all(len(top) <= 2 for top in logprobs["top_logprobs"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [100000]}, "prompt"),
        ({"prompt": "a", "max_tokens": 600}, "max_tokens"),
        ({"prompt": ""}, "prompt"),
        ({}, "prompt"),
    ],
)
def test_what_is_refused(fields, param):
    engine = FakeEngine(says("qwen2.5", "."))
    error = complete(engine, **fields).json()["error"]
    assert error["param"] == param and not engine.asks
