"""Tokens become pieces: content, calls, stops, and each token's probabilities beside its text."""

from typing import Any

from tests.serve.fake_engine import tokens_of
from tests.serve.http.talking import renderer_of, tokenizer_of
from tunesmith.serve.ask import End, Token
from tunesmith.serve.http.answers import LOWEST, Answer, Piece, chat_logprobs, finite
from tunesmith.serve.http.reading import reading_of
from tunesmith.serve.http.text import vocabulary_of

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def answered(text: str, *, end: str = "stop", family: str = "qwen2.5", **settings: Any) -> tuple[Answer, list[list[Piece]]]:
    """The answer, and the pieces of each token and of the end."""
    tokenizer = tokenizer_of(family)
    if "reading" not in settings:
        settings["reading"] = reading_of(renderer_of(family), "names" in settings)
    answer = Answer(vocabulary_of(tokenizer), **settings)
    steps = []
    for token in tokens_of(tokenizer, text):
        steps.append(answer.add(token))
        if answer.finish:
            break
    steps.append(answer.end(End(end)))  # type: ignore[arg-type]
    return answer, steps


def content(steps: list[list[Piece]]) -> str:
    return "".join(piece.text for step in steps for piece in step if piece.kind == "content")


def spelled(steps: list[list[Piece]], family: str = "qwen2.5") -> str:
    vocabulary = vocabulary_of(tokenizer_of(family))
    return b"".join(vocabulary.bytes_of(token.id) for step in steps for piece in step for token in piece.tokens).decode(errors="replace")


def test_ends():
    for end, finish in (("stop", "stop"), ("length", "length")):
        answer, steps = answered("Hello.", end=end)
        assert content(steps) == "Hello." and answer.finish == finish
    answer, steps = answered(CALL, names=("weather",))
    assert answer.finish == "tool_calls" and answer.calls == 1 and not content(steps)
    answer, _ = answered(CALL[:50], end="length", names=("weather",))
    assert answer.finish == "length" and answer.calls == 1


def test_a_stop_text_cuts_text_and_tokens():
    text = "One. Two. Three."
    answer, steps = answered(text, stops=[" Thr"])
    assert content(steps) == "One. Two." and answer.finish == "stop"
    assert spelled(steps) == "One. Two.", "tokens of the stop text are left out"
    half = answered("a🙂b", stops=["🙂"])[1]
    assert content(half) == "a" and spelled(half) == "a", "half characters belong to the stop text"


def test_stop_texts_count_in_what_is_said_alone():
    text = f"<think>\nstop here?\n</think>\n\n{CALL}"
    answer, steps = answered(text, stops=["stop", "name"], names=("weather",))
    assert answer.finish == "tool_calls" and answer.calls == 1
    answer, steps = answered("<think>\nstop?\n</think>\n\nWe stop now", stops=["stop"])
    assert content(steps) == "We " and answer.finish == "stop"


def test_one_call_ends_the_answer():
    answer, _ = answered(CALL + "\n" + CALL, names=("weather",), one_call=True)
    assert answer.calls == 1 and answer.finish == "tool_calls" and answer.tokens < len(tokens_of(tokenizer_of("qwen2.5"), CALL + CALL))
    answer, _ = answered(CALL + "\n" + CALL, names=("weather",))
    assert answer.calls == 2


def test_tokens_of_thinking_are_counted():
    answer, _ = answered("<think>\nHm, so.\n</think>\n\nYes.")
    assert 0 < answer.thoughts < answer.tokens
    assert answered("Yes.")[0].thoughts == 0


def test_every_token_goes_out_once_with_its_text():
    for text in ("Hello wörld 🙂 <tool", "<think>\nHm 🙂\n</think>\n\nYes.", f"Well.\n{CALL}"):
        _, steps = answered(text, names=("weather",))
        assert spelled(steps) == text
    # and not before it: what is held back takes its tokens along
    steps = answered("Hi <think", stops=["<thinking>"])[1]
    assert [spelled([step]) for step in steps][-1] == " <think" or content(steps[-1:]) == spelled(steps[-1:])


def test_without_a_reading_all_is_content():
    _, steps = answered(f"<think>\n{CALL}", reading=None)
    assert content(steps) == f"<think>\n{CALL}"


def test_ids_of_calls_are_such_as_the_template_takes():
    for family, length in (("qwen2.5", 29), ("mistral-v3", 9)):
        text = renderer_of(family).answer(
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefghi", "function": {"name": "weather", "arguments": {}}}]},
            ]
        )
        _, steps = answered(text, family=family, names=("weather",))
        [call] = [piece for step in steps for piece in step if piece.kind == "call"]
        assert len(call.id) == length and call.id.replace("call_", "").isalnum()


def test_logprobs_of_half_characters():
    vocabulary = vocabulary_of(tokenizer_of("qwen2.5"))
    tokens = tokens_of(tokenizer_of("qwen2.5"), "🙂")
    entries = chat_logprobs(vocabulary, tokens, 2)
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "🙂" and len(entries) == 4
    assert entries[0]["token"] == "\ufffd" and entries[0]["logprob"] == -0.5
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 4 and "top_logprobs" not in entries[0]["top_logprobs"][0]
    assert finite(float("-inf")) == finite(None) == LOWEST
    assert chat_logprobs(vocabulary, [Token(5, float("-inf"))], 0)[0]["logprob"] == LOWEST
