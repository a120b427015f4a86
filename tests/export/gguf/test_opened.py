import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.gguf.made_models import made_model, renderer_of, truth_of
from tunesmith.errors import UserError
from tunesmith.export.gguf import opened
from tunesmith.export.gguf.opened import HARD_TEXTS, LIKELIEST, _apart, _greedy, _kl, _places, proof
from tunesmith.export.target import Truth


def truth(answers: list[list[int]], margins: list[list[float]]) -> Truth:
    return Truth((), (), (), tuple(answers), tuple(margins))


def test_kl_of_some_tokens() -> None:
    logits_V = torch.tensor([1.0, 3.0, 2.0, -5.0])
    ids_K = torch.tensor([1, 2, 0])
    same_K = logits_V.double().log_softmax(-1)[ids_K]
    assert _kl(logits_V, ids_K, same_K) == pytest.approx(0, abs=1e-12)
    assert _kl(logits_V, ids_K, same_K - 1e-4) == pytest.approx(0, abs=1e-12)  # a sum that is off by as much everywhere
    other_K = same_K + torch.tensor([0.0, 0.5, 0.0])
    p, q = same_K.softmax(-1), other_K.softmax(-1)
    assert _kl(logits_V, ids_K, other_K) == pytest.approx(float((p * (p / q).log()).sum()))
    assert math.isnan(_kl(logits_V, ids_K, torch.tensor([math.nan, 0.0, 0.0])))


def test_nan_is_never_near() -> None:
    logits_TV = torch.tensor([[0.0, 1.0]])
    found = _apart(Truth((), ([1],), (logits_TV,), ([],), ([],)), [[1]], [[[[1, 0], [math.nan, math.nan]]]])
    assert math.isnan(found.mean_kl) and not found.mean_kl <= 1.0


def test_places_are_spread_and_end_with_the_whole_prompt() -> None:
    assert _places(60) == [10, 20, 30, 40, 50, 60]
    assert _places(3) == [1, 2, 3]
    assert _places(1) == [1]
    assert all(_places(length)[-1] == length and _places(length)[0] > 0 for length in range(1, 50))


def test_greedy_answers() -> None:
    ours = truth([[5, 6, 7], [5, 6], [5, 6], [5]], [[1.0, 1e-4, 1.0], [1.0, 2.0], [1.0, 1.0], [1.0]])
    equal, ties, others = _greedy(ours, [[5, 8, 9], [5, 9], [5, 6, 2], [5, 7]], {2}, 1e-3)
    assert equal == 1 + 1 + 2 + 1
    assert len(ties) == 1 and "answer 1 parts from ours at token 2" in ties[0]
    assert ["answer 2 has another token 2" in others[0], "answer 4 goes on behind token 1" in others[1]] == [True, True]


def test_without_llamacpp_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tunesmith\[llamacpp\]', or --no-verify"):
        proof(Path("x"), "f16", truth([], []), None)


def test_how_llamacpp_ended_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(code: int, error: str) -> Any:
        return lambda *arguments, **named: subprocess.CompletedProcess([], code, "", error)

    monkeypatch.setattr(subprocess, "run", ends(1, "0.0 I fine\n0.1 E cannot find tensor\nTraceback"))
    assert opened._asked({}) == "cannot find tensor"
    monkeypatch.setattr(subprocess, "run", ends(-6, ""))
    assert opened._asked({}) == "it ended with code -6"

    def late(*arguments: Any, **named: Any) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(subprocess, "run", late)
    assert "no answer within 2 hours" in opened._asked({})


def test_every_difference_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp answers is made up here: other ids, another prompt, other words, nothing near our distributions."""
    monkeypatch.setattr(opened, "find_spec", lambda name: True)
    monkeypatch.setattr(opened, "program", lambda: "llama.cpp")
    folder = made_model("llama_tied", tmp_path / "model")
    ours, renderer = truth_of(folder), renderer_of(folder)

    def answers(questions: dict[str, Any]) -> dict[str, Any]:
        assert questions["likeliest"] == LIKELIEST and questions["context"] % 256 == 0
        texts = [renderer.tokenizer(text, add_special_tokens=False)["input_ids"] for text in HARD_TEXTS]
        return {
            "texts": [texts[0][:-1], *texts[1:]],
            "rendered": [[1] for _ in questions["rendered"]],
            "talks": [{"refused": "no"}, {"text": "", "ids": [1, 2]}],
            "answers": [[], list(ours.answers[1])],
            "likeliest": [[[[0, 1], [-0.7, -0.7]] for _ in places] for places in questions["places"]],
        }

    monkeypatch.setattr(opened, "_asked", answers)
    (tmp_path / "none").write_bytes(b"GGUF")
    found = proof(tmp_path / "none", "f32", ours, renderer)
    assert any("as llama.cpp tokenises" in each for each in proof(tmp_path / "none", "f32", ours, renderer, rendered=["x", "y"]).failures)
    said = "\n".join(found.failures)
    assert "makes other tokens of 'Hello world'" in said and "refuses the chat template: no" in said
    assert "prompt of a conversation has other tokens than the trained" in said and "nats from ours" in said
    assert "answer 1 has another token 1" in said and len(found.failures) == 5
