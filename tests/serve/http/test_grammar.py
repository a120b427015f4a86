"""Forced calls: whatever the model's numbers say, what comes out is a call of the family's own form that its parser reads."""

import json
from typing import Any

import pytest
import torch

from tests.serve.conformance import SEARCH, WEATHER
from tests.serve.http.talking import renderer_of, tokenizer_of
from tunesmith.serve.ask import Ask, Constraint, End, Token
from tunesmith.serve.builtin.constraints import matcher_of
from tunesmith.serve.builtin.sampling import Choice, choose
from tunesmith.serve.http.answers import Answer
from tunesmith.serve.http.errors import Problem
from tunesmith.serve.http.grammar import behind_thinking, forced_calls
from tunesmith.serve.http.reading import reading_of
from tunesmith.serve.http.text import Vocabulary, vocabulary_of

MOST = 400  # tokens
FAMILIES = ["qwen2.5", "deepseek-r1", "llama-3.2", "mistral-v3", "glm", "gpt-oss"]


def words(family: str) -> Vocabulary:
    return vocabulary_of(tokenizer_of(family))


def dreamt(family: str, constraint: Constraint, seed: int, favour: str = "") -> list[int]:
    """Tokens of a model whose logits are noise, with a liking for those of `favour`."""
    tokenizer, numbers = tokenizer_of(family), torch.Generator().manual_seed(seed)
    ask = Ask("base", (1,), MOST, frozenset({tokenizer.eos_token_id}), temperature=1.0, seed=seed, constraint=constraint)
    choice = Choice(ask, len(tokenizer), matcher_of(constraint, tokenizer, ask.stop_ids))
    liked = tokenizer(favour, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids: list[int] = []
    while not choice.finished and len(ids) < MOST:
        logits_V = torch.randn(len(tokenizer), generator=numbers)
        logits_V[liked] += 4
        [token] = choose(logits_V.unsqueeze(0), [choice])
        assert token is not None, choice.trouble
        if token.id == tokenizer.eos_token_id:
            break
        choice.take(token.id)
        ids.append(token.id)
    return ids


def read(family: str, ids: list[int], *, opened: bool) -> tuple[str, list[tuple[str, Any]], str]:
    answer = Answer(words(family), reading=reading_of(renderer_of(family), True), opened=opened, names=("weather", "search"))
    pieces = [piece for token in ids for piece in answer.add(Token(token))] + answer.end(End("stop"))
    calls = [
        (call.text, json.loads("".join(each.text for each in pieces if each.kind == "arguments" and each.index == call.index)))
        for call in pieces
        if call.kind == "call"
    ]
    said = "".join(piece.text for piece in pieces if piece.kind in ("content", "broken"))
    return said, calls, "".join(piece.text for piece in pieces if piece.kind == "thought")


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_calls_of_these_functions_come_out(family, opened):
    reading = reading_of(renderer_of(family), True)
    constraint = forced_calls(reading, [WEATHER, SEARCH], words(family), several=False, opened=opened)
    close = {"gpt-oss": "<|end|>"}.get(family, "</think>")
    for seed in range(4):
        said, calls, _ = read(family, dreamt(family, constraint, seed, close), opened=opened)
        assert not said.strip()
        [(name, arguments)] = calls
        if name == "weather":
            assert arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9 and len(arguments) == 2
        else:
            assert name == "search" and isinstance(arguments["safe"], bool)


@pytest.mark.parametrize("family", ["qwen2.5", "mistral-v3"])
def test_several_calls_may_come(family):
    constraint = forced_calls(reading_of(renderer_of(family), True), [SEARCH], words(family), several=True, opened=False)
    counts = set()
    for seed in range(8):
        ids = dreamt(family, constraint, seed, ", ]<tool_call>\n")
        if len(ids) == MOST:
            continue  # it would have called for ever
        said, calls, _ = read(family, ids, opened=False)
        assert not said.strip() and all(name == "search" for name, _ in calls)
        counts.add(len(calls))
    assert max(counts) > 1


@pytest.mark.parametrize(
    ("constraint", "good"),
    [
        (Constraint("json", WEATHER["function"]["parameters"]), lambda text: set(json.loads(text)) == {"city", "days"}),
        (Constraint("json", {}), lambda text: isinstance(json.loads(text), dict)),
        (Constraint("regex", "^[0-9]{2}/[ab]$"), lambda text: len(text) == 4 and text[2] == "/"),
        (Constraint("choice", ["red", "green"]), lambda text: text in ("red", "green")),
    ],
    ids=["schema", "object", "regex", "choice"],
)
def test_a_schema_begins_behind_the_thinking(constraint, good):
    reading = reading_of(renderer_of("deepseek-r1"), True)
    wrapped = behind_thinking(constraint, reading, words("deepseek-r1"))
    thoughts = set()
    for seed in range(4):
        said, calls, thought = read("deepseek-r1", dreamt("deepseek-r1", wrapped, seed, '</think>"}'), opened=True)
        assert not calls and good(said)
        thoughts.add(thought)
    assert any(thoughts), "the thinking is free"


@pytest.mark.parametrize("family", ["qwen2.5", "llama-3.2", "mistral-v3"])
def test_the_model_may_call_or_keep_to_the_schema(family):
    schema = Constraint(
        "json", {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"], "additionalProperties": False}
    )
    reading, kinds = reading_of(renderer_of(family), True), set()
    constraint = forced_calls(reading, [SEARCH], words(family), several=False, opened=False, otherwise=schema)
    for seed in range(12):
        ids = dreamt(family, constraint, seed, '"n')
        if len(ids) == MOST:
            continue
        said, calls, _ = read(family, ids, opened=False)
        kinds.add(bool(calls))
        assert bool(said) != bool(calls) and (calls or isinstance(json.loads(said)["n"], int))
    assert kinds == {True, False} or family != "qwen2.5", "noise rarely likes both of two texts that begin alike"


def test_a_grammar_of_the_client_cannot_begin_behind_the_thinking():
    with pytest.raises(Problem, match="enable_thinking"):
        behind_thinking(Constraint("lark", 'start: "a"'), reading_of(renderer_of("deepseek-r1"), True), words("deepseek-r1"))
