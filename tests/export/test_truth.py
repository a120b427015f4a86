from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.export.tiny_runs import run_of
from tests.runs import own_cache, quiet  # noqa: F401
from tunesmith.export.source import describe
from tunesmith.export.target import ANSWER, Source, Truth
from tunesmith.export.truth import CONVERSATIONS, truth_of
from tunesmith.tuned import open_tuned


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("truth")


@torch.no_grad()
def logits(model: Any, source: Source, truth: Truth) -> list[torch.Tensor]:
    return [model(torch.tensor([ids])).logits[0] for ids in truth.prompts]


def test_a_lora_beside_its_base(tiny_llama: Path, place: Path) -> None:
    source = describe(str(run_of(tiny_llama, place, "lora")))
    truth = truth_of(source, False, quiet)
    assert list(truth.conversations) == list(CONVERSATIONS)
    assert list(truth.prompts) == [source.renderer.prompt_ids(talk) for talk in CONVERSATIONS]
    for expected, found in zip(logits(open_tuned(source.given).model, source, truth), truth.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert truth.from_trained is None and truth.base_answers != truth.answers


def test_answers_are_the_likeliest_tokens_and_margins_say_by_how_much(tiny_llama: Path, place: Path) -> None:
    truth = truth_of(describe(str(run_of(tiny_llama, place, "lora"))), True, quiet)
    assert [len(margins) for margins in truth.margins] == [len(answer) for answer in truth.answers]
    assert all(0 < len(answer) <= ANSWER for answer in truth.answers)
    for logits_TV, answer, margins in zip(truth.logits, truth.answers, truth.margins, strict=True):
        best = logits_TV[-1].topk(2)
        assert best.indices[0] == answer[0]
        assert margins[0] == pytest.approx(float(best.values[0] - best.values[1]), rel=1e-3, abs=1e-4)
        assert min(margins) >= 0


def test_merged_over_fp32_is_what_was_trained(tiny_llama: Path, place: Path) -> None:
    source = describe(str(run_of(tiny_llama, place, "lora")))
    beside, merged = truth_of(source, False, quiet), truth_of(source, True, quiet)
    for a, b in zip(beside.logits, merged.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert merged.from_trained is not None and merged.from_trained["prompts"]["mean_kl"] < 1e-8 and merged.base_answers == ()


def test_what_was_trained_over_nf4_is_heard_over_the_weights_that_servers_have(tiny_llama: Path, place: Path) -> None:
    source = describe(str(run_of(tiny_llama, place, "qlora", method={"name": "qlora", "rank": 4})))
    truth = truth_of(source, False, quiet)
    tuned = open_tuned(str(source.adapter), dtype="float32")  # an adapter folder by itself: its base as it is
    assert not tuned.base.quantized
    for expected, found in zip(logits(tuned.model, source, truth), truth.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert truth.from_trained is not None and 1e-6 < truth.from_trained["prompts"]["mean_kl"] < 0.5


def test_a_model_by_itself(tiny_llama: Path) -> None:
    source = describe(str(tiny_llama))
    truth = truth_of(source, False, quiet)
    for expected, found in zip(logits(AutoModelForCausalLM.from_pretrained(tiny_llama), source, truth), truth.logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_a_chat_template_texts_are_asked(tiny_llama: Path, tmp_path: Path) -> None:
    from tests.conftest import write_byte_tokenizer

    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    write_byte_tokenizer(tmp_path, None)
    truth = truth_of(describe(str(tmp_path)), False, quiet)
    assert truth.conversations == () and len(truth.prompts) == 2, "those that are one question"
