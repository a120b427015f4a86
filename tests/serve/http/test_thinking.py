"""Thinking is told from speech, however the text is cut."""

import random

import pytest

from tests.serve.http.talking import renderer_of
from tunesmith.serve.http.reading import Thought, begins_thinking, reading_of
from tunesmith.serve.http.thinking import Thinking

PLAIN = Thought(("<think>",), ("</think>",), (), "")
HARMONY = reading_of(renderer_of("gpt-oss"), False).thought
A, B, C, D = "\ud800", "\ud801", "\ud802", "\ud803"  # <|channel|> <|message|> <|end|> <|start|>


def told(thought: Thought, text: str, opened: bool, seed: int) -> tuple[str, str]:
    thinking, numbers, at = Thinking(thought, opened=opened), random.Random(seed), 0
    parts = []
    while at < len(text):
        size = numbers.choice([1, 2, 5, 40])
        parts += thinking.add(text[at : at + size])
        at += size
    parts += thinking.end()
    kinds = [kind for kind, _ in parts]
    assert kinds == sorted(kinds, reverse=True), "thinking comes first"
    return "".join(text for kind, text in parts if kind == "thought"), "".join(text for kind, text in parts if kind == "spoken")


CASES = [
    (PLAIN, False, "Hello <think>", ("", "Hello <think>")),
    (PLAIN, False, " two\n", ("", " two\n")),
    (PLAIN, False, "<think>\nHm.\n So.\n</think>\n\n Yes.\n", ("Hm.\n So.", "Yes.\n")),
    (PLAIN, False, "\n<think></think>Yes.", ("", "Yes.")),
    (PLAIN, False, "<thinker>", ("", "<thinker>")),
    (PLAIN, False, "<think", ("", "<think")),
    (PLAIN, False, "<think>Hm, cut off ", ("Hm, cut off", "")),
    (PLAIN, True, "Hm.</thin", ("Hm.</thin", "")),
    (PLAIN, True, "\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
    (PLAIN, True, "</think>\n\n", ("", "")),
    (Thought(("<think>",), ("</think>",), (), " "), False, " Yes.", ("", "Yes.")),
    (HARMONY, False, f"{A}final{B}Yes.", ("", "Yes.")),
    (HARMONY, False, f"{A}analysis{B}Hm.{C}{D}assistant{A}final{B}Yes.", ("Hm.", "Yes.")),
]


@pytest.mark.parametrize(("thought", "opened", "text", "expected"), CASES, ids=range(len(CASES)))
def test_cases(thought, opened, text, expected):
    for seed in range(12):
        assert told(thought, text, opened, seed) == expected


def test_what_is_sure_goes_out_at_once():
    thinking = Thinking(PLAIN, opened=False)
    assert thinking.add("<think>Hm") == [("thought", "Hm")]
    assert thinking.add(" so ") == [("thought", " so")] and thinking.held == 1
    assert thinking.add("</") == [] and thinking.add("think>\nYes") == [("spoken", "Yes")]


def test_whether_a_prompt_opens_the_thinking():
    def begins(family: str, **variables: bool) -> bool:
        renderer = renderer_of(family)
        prompt = renderer.prompt([{"role": "user", "content": "Hi"}], (), variables)
        return begins_thinking(prompt.text, renderer.habits())

    assert begins("deepseek-r1") and begins("qwen3-thinking") and not begins("qwen3") and not begins("smollm2")
    assert not begins("qwen3", enable_thinking=False)
