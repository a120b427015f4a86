"""A step computed: spans of adapters, logits of those that want them, and models that are refused."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.serve.builtin.engines import base_of
from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.models.load import attention
from tunesmith.serve.ask import Ask
from tunesmith.serve.builtin.attention import NAME
from tunesmith.serve.builtin.cache import Cache
from tunesmith.serve.builtin.forward import Forward, joined
from tunesmith.serve.builtin.scheduler import Answer, Part


class Rows:
    """Notes what it is told of rows."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @contextmanager
    def rows(self, spans: Any) -> Any:
        self.told.append(spans)
        yield


def test_neighbours_of_one_adapter_are_one_span() -> None:
    assert joined([(0, 1, "a"), (1, 5, "a"), (5, 6, ""), (6, 7, "a")]) == [(0, 5, "a"), (5, 6, ""), (6, 7, "a")]


def test_a_step_can_be_repeated_and_its_logits_are_the_class_s() -> None:
    model, rows = tiny("gemma2"), Rows()  # soft-capped logits
    forward = Forward(base_of(model), rows)
    assert forward.words == 96
    cache = Cache(forward.layers, torch.float32, torch.device("cpu"), 4096, 256, 8)
    answers = []
    for number, length in enumerate((20, 30, 9)):
        ids = some_ids(length, number).tolist()
        answer = Answer(Ask("", tuple(ids), 4, frozenset()), print, None, "ab"[number > 1], ids, 0, 4, lambda: None)
        answer.room, answer.begun = cache.take(length + 4), True
        answers.append(answer)
    parts = [Part(answers[0], 20), Part(answers[1], 10), Part(answers[2], 9)]
    with torch.no_grad(), attention(model, NAME):
        first, sound_P = forward.compute(parts)
        again, _ = forward.compute(parts)
    assert torch.equal(first, again) and first.shape == (2, 96) and sound_P.tolist() == [True] * 3
    assert rows.told[:2] == [[(0, 30, "a"), (30, 39, "b")], [(0, 1, "a"), (1, 2, "b")]]
    with torch.no_grad(), attention(model, "eager"):
        for logits, answer in zip(first, (answers[0], answers[2]), strict=True):
            torch.testing.assert_close(logits, model(input_ids=torch.tensor([answer.fed])).logits[0, -1], rtol=1e-4, atol=1e-4)


def test_what_is_no_number_is_told_of_its_part_alone() -> None:
    model = tiny("llama")
    model.model.embed_tokens.weight.data[7] = float("nan")
    forward = Forward(base_of(model), Rows())
    cache = Cache(forward.layers, torch.float32, torch.device("cpu"), 4096, 256, 8)
    parts = []
    for ids in ([3, 4, 5], [3, 7]):
        answer = Answer(Ask("", tuple(ids), 4, frozenset()), print, None, "", ids, 0, 4, lambda: None)
        answer.room, answer.begun = cache.take(10), True
        parts.append(Part(answer, 2))
    with torch.no_grad(), attention(model, NAME):
        logits_BV, sound_P = forward.compute(parts)
    assert sound_P.tolist() == [True, False] and len(logits_BV) == 1


def test_models_without_plain_attention_are_refused() -> None:
    with pytest.raises(UserError, match=r"MambaForCausalLM.*--engine vllm"):
        Forward(base_of(tiny("mamba")), Rows())
