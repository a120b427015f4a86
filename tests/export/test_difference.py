import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import runs
from tests.conftest import write_byte_tokenizer
from tests.headed import headed
from tunesmith.data.rendering.render import Renderer
from tunesmith.export import difference
from tunesmith.export.difference import answers_of, compare, logits_of, own_rows, prompts
from tunesmith.models import load as loading


def test_the_same_model_is_not_apart() -> None:
    logits = [torch.randn(n, 5000, generator=torch.Generator().manual_seed(n)) for n in (3, 7)]
    found = compare(logits, [each.clone() for each in logits])
    assert (found.positions, found.largest_logit_difference, found.mean_kl, found.top1_agreement) == (10, 0.0, 0.0, 1.0)


def test_kl_is_never_negative() -> None:
    """Rounding would make it so for models that hardly differ."""
    for seed in range(20):
        logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed)) * 20
        assert 0 <= compare([logits], [logits * (1 + 1e-7)]).mean_kl < 1e-9
        assert compare([logits], [logits + 3.0]).mean_kl < 1e-9, "a constant shift is the same distribution"


def test_figures_of_two_known_distributions() -> None:
    first = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.9), math.log(0.1)]])
    second = torch.tensor([[math.log(0.25), math.log(0.75)], [math.log(0.9), math.log(0.1)]])
    found = compare([first], [second])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.mean_kl == pytest.approx(kl / 2, rel=1e-6)
    assert found.largest_logit_difference == pytest.approx(math.log(2), rel=1e-6)
    assert found.top1_agreement == 0.5, "the first is a tie, which goes to the first name"


def test_what_is_not_a_number_is_not_called_near() -> None:
    first, second = torch.zeros(2, 4), torch.zeros(2, 4)
    second[1, 2] = float("nan")
    found = compare([first], [second])
    assert math.isnan(found.mean_kl) and math.isnan(found.largest_logit_difference)


def test_logits_are_the_class_s_own(tiny_llama: Path) -> None:
    model = loading.load(tiny_llama, dtype=torch.float32).model
    found = logits_of(model, [[5, 6, 7], [8]])
    assert [tuple(each.shape) for each in found] == [(3, 384), (1, 384)]
    torch.testing.assert_close(found[0], model(input_ids=torch.tensor([[5, 6, 7]])).logits[0])


def test_prompts_are_what_a_server_would_feed(tiny_llama: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny_llama)
    asked = prompts(tokenizer, Renderer(tokenizer))
    assert len(asked) == 4
    assert tokenizer.decode(asked[0]) == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_of_a_model_without_a_chat_template(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path, chat_template=None)
    tokenizer = loading.load_tokenizer(tmp_path)
    assert "What is the capital of France?" in tokenizer.decode(prompts(tokenizer, Renderer(tokenizer))[0])


def test_own_rows_are_the_learned_positions_of_some_rows(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = runs.write_rows(tmp_path / "rows.jsonl", 40)
    tokenizer, model = loading.load_tokenizer(tiny_llama), loading.load(tiny_llama, dtype=torch.float32).model
    run = runs.settings(tiny_llama, data, tmp_path / "run", {"data.max_length": 40})
    tuned: Any = SimpleNamespace(run=run, renderer=Renderer(tokenizer, stop_ids=[257]), head=None, model=model)
    asked = own_rows(tuned, 5)
    assert len(asked) == 5 and asked == own_rows(tuned, 5), "the same ones always"
    for each in asked:
        assert each.positions and len(each.ids) <= 40
        said = tokenizer.decode([each.ids[at + 1] for at in each.positions if at + 1 < len(each.ids)])
        assert said and set(said.replace("<|im_end|>", "")) <= set(" ".join(runs.NUMBERS)), said
        [found], [whole] = answers_of(model, [each]), logits_of(model, [each.ids])
        torch.testing.assert_close(found, whole[list(each.positions)])
    monkeypatch.setattr(difference, "_LOGIT_BYTES", 0)
    assert all(1 <= len(each.positions or ()) <= 8 for each in own_rows(tuned, 5)), "a large vocabulary leaves room for fewer"
    data.unlink()
    assert own_rows(tuned) == [], "its data is not there any more"
    assert own_rows(SimpleNamespace(run=None)) == []


def test_own_rows_of_a_head_are_where_labels_are(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i}", "label": "ab"[i % 2]}) + "\n" for i in range(6)))
    tuned = headed(tiny_llama, "classify", ["a", "b"])
    tuned.run = runs.settings(tiny_llama, path, tmp_path / "run", {"task": {"name": "classify"}})
    asked = own_rows(tuned)
    assert len(asked) == 6 and all(each.positions == (len(each.ids) - 1,) for each in asked)
    assert [tuple(found.shape) for found in answers_of(tuned.model, asked, tuned.head)] == [(1, 2)] * 6
