"""The least recompute that fits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tests.step.test_memory import question
from tunesmith import config, hardware
from tunesmith.errors import UserError
from tunesmith.step import memory as prediction
from tunesmith.step.memory import Memory, predicted
from tunesmith.train import loop
from tunesmith.train.memory import budget_bytes, choose
from tunesmith.train.setting import decide

CPU = torch.device("cpu")
DEPTH = 8


@pytest.fixture(scope="module")
def asked() -> Any:
    """A llama of eight blocks."""
    from tests.tiny_models import tiny
    from tunesmith.methods import method
    from tunesmith.methods.settings import SETTINGS
    from tunesmith.models import load

    shape = tiny("llama").config
    shape.num_hidden_layers = DEPTH
    skeleton = load.skeleton(shape)
    tuning = method.build(skeleton, SETTINGS["lora"](), quantized=False, device="meta")
    return replace(question(), skeleton=skeleton, tuning=tuning)


def run(**train: Any) -> config.Run:
    return config.parse({"train": train})


def total(asked: Any, level: str, tokens: int = 256) -> int:
    return predicted(asked, level, tokens).total


def test_everything_is_kept_where_it_fits(asked: Any) -> None:
    choice = choose(run(), asked, 256, True, (total(asked, "none"), "all"))
    assert (choice.level, choice.first, choice.row_tokens) == ("none", None, 256) and "everything is kept" in choice.reason


def test_then_what_norms_can_make_again_is_not(asked: Any) -> None:
    choice = choose(run(), asked, 256, True, (total(asked, "none") - 1, "less"))
    assert choice.level == "elementwise" and choice.memory.total <= choice.budget


def test_then_as_few_blocks_as_the_budget_asks_for(asked: Any) -> None:
    above, below = total(asked, "elementwise"), total(asked, "blocks")
    most = above - (above - below) * 2 // DEPTH - 1  # what two of eight would give, and one byte less
    choice = choose(run(), asked, 256, True, (most, "less"))
    assert (choice.level, choice.first) == ("blocks", 3) and below < choice.memory.total <= most
    assert "of 3 blocks of 8" in choice.reason and "of 3 blocks" in choice.sentence()
    assert choose(run(), asked, 256, True, (below, "less")).first is None, "all of them"


def test_a_level_that_is_asked_for_is_taken(asked: Any) -> None:
    choice = choose(run(recompute="blocks"), asked, 256, True, (10**12, "all"))
    assert (choice.level, choice.first) == ("blocks", None)


def test_a_gpu_may_let_inputs_wait_on_the_host(asked: Any) -> None:
    gpu = replace(asked, device_type="cuda")
    away = total(gpu, "offload", 2048)
    assert away < total(gpu, "blocks", 2048)
    assert choose(run(), gpu, 2048, False, (away, "less")).level == "offload"


def test_rows_become_shorter_where_no_level_fits_and_documents_stay_whole(asked: Any) -> None:
    most = total(asked, "blocks", 512)
    choice = choose(run(), asked, 2048, True, (most, "less"))
    assert choice.row_tokens == 512 and choice.memory.total <= most
    long = replace(asked, longest=1500)
    with pytest.raises(UserError, match="longest document has 1,500 tokens"):
        choose(run(), long, 2048, True, (most, "less"))


def test_what_does_not_fit_is_refused_with_what_would(asked: Any) -> None:
    most = total(asked, "blocks", 512)
    with pytest.raises(UserError) as refused:
        choose(run(row_tokens=2048, memory_budget="1MB"), asked, 2048, False, (most, "train.memory_budget 1MB"))
    said = str(refused.value)
    tokens = int(said.partition("train.row_tokens=")[2].split()[0])
    assert 400 < tokens <= 540 and "nf4" in said and "train.memory_budget=" in said
    assert choose(run(), asked, tokens, False, (most, "")).row_tokens == tokens


def test_a_level_that_was_asked_for_is_a_note_where_only_free_memory_speaks_against_it(asked: Any) -> None:
    choice = choose(run(recompute="none"), asked, 256, False, (1000, "of what is free now"))
    assert choice.level == "none" and "will be needed" in choice.notes[0]


@pytest.mark.parametrize(("text", "expected"), [("8GB", 8e9), ("8GiB", 8 * 2**30), ("1.5GB", 1.5e9), ("512MiB", 2**29), ("50%", 32e9)])
def test_budgets(text: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "total_memory", lambda device: int(64e9))
    assert config.parse({"train": {"memory_budget": text}}).train.memory_budget == text
    assert budget_bytes(text, CPU)[0] == expected


def test_the_automatic_budget_is_what_is_free_and_what_the_program_has_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda device: 9_000_000_000)
    monkeypatch.setattr(hardware, "private_bytes", lambda process: 1_000_000_000)
    assert budget_bytes("auto", CPU)[0] == 9_000_000_000


@pytest.mark.parametrize("text", ["8", "8gb", "much", "0%", "120%", "-1GB", "8 TB"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match=r"train.memory_budget.*8GB \| 8GiB \| 80%"):
        config.parse({"train": {"memory_budget": text}})


def test_a_run_under_a_budget_gives_the_same_numbers_and_keeps_its_blocks_when_resumed(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = runs.write_rows(tmp_path / "rows.jsonl")
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "free"))
    monkeypatch.setattr("tunesmith.train.memory.program_bytes", lambda device: 0)
    monkeypatch.setattr("tunesmith.train.memory.LATER", 0)
    sizes: dict[str, Memory] = {}
    inner = prediction.predicted

    def watched(asked: Any, level: str, tokens: int) -> Memory:
        sizes[level] = inner(asked, level, tokens)
        return sizes[level]

    monkeypatch.setattr("tunesmith.train.memory.predicted", watched)
    decide(runs.settings(tiny_llama, data, tmp_path / "x", {"train.recompute": "elementwise"}), {}, runs.quiet)
    decide(runs.settings(tiny_llama, data, tmp_path / "x", {"train.recompute": "blocks"}), {}, runs.quiet)
    most = (sizes["elementwise"].total + sizes["blocks"].total) // 2  # one of two blocks
    monkeypatch.setattr("tunesmith.train.memory.budget_bytes", lambda text, device: (most, "for a test"))
    tight = runs.settings(tiny_llama, data, tmp_path / "tight", {"train.recompute": "auto"})
    found = decide(tight, {}, runs.quiet)
    assert (found.run.train.recompute, found.memory.first) == ("blocks", 1)
    assert "of 1 blocks of 2" in found.origins["train.recompute"]
    list(loop.train(tight, tell=runs.quiet))
    assert json.loads((tmp_path / "tight/plan.json").read_text())["recompute"] == {"level": "blocks", "first_blocks": 1}
    assert runs.steps_of(tmp_path / "tight") == runs.steps_of(tmp_path / "free")
    list(loop.resume(tmp_path / "tight", steps=7, tell=runs.quiet))
    assert json.loads((tmp_path / "tight/plan.json").read_text())["recompute"] == {"level": "blocks", "first_blocks": 1}
