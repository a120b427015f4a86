"""Runs whose tensors are moved in the backward pass: the ordinary run's numbers, resumed to the bit, refused where they cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import events
from tunesmith.errors import Interrupted, UserError
from tunesmith.train import loop
from tunesmith.train.setting import decide

FULL: dict[str, Any] = {"method": {"name": "full"}, "train.clip": 0.0, "train.learning_rate": 1e-3, "train.row_tokens": 512}
IN_BACKWARD = FULL | {"train.optimizer_in_backward": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def test_without_clipping_it_is_the_ordinary_run(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    for name, changes in (("ordinary", FULL), ("in_backward", IN_BACKWARD)):
        runs.finish(runs.settings(tiny_llama, data, tmp_path / name, changes))
    ours, theirs = (runs.steps_of(tmp_path / name) for name in ("in_backward", "ordinary"))
    assert [step["loss"] for step in ours] == [step["loss"] for step in theirs]
    assert [step["grad_norm"] for step in ours] == pytest.approx([step["grad_norm"] for step in theirs], rel=1e-5)
    weights = {name: content for name, content in runs.contents(tmp_path / "in_backward").items() if name.endswith(".safetensors")}
    assert weights and all(runs.contents(tmp_path / "ordinary")[name] == content for name, content in weights.items())


@pytest.mark.parametrize("changes", [{}, {"train.clip": 1.0, "model.dtype": "bfloat16", "train.optimizer": "adamw_8bit"}])
def test_a_resumed_run_is_an_undisturbed_one(tiny_llama: Path, data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "whole", IN_BACKWARD | changes))
    run = runs.settings(tiny_llama, data, tmp_path / "stopped", IN_BACKWARD | changes)
    with pytest.raises(Interrupted):
        list(loop.train(run, stop=runs.stop_after(2), tell=runs.quiet))
    list(loop.resume(tmp_path / "stopped", tell=runs.quiet))
    whole, stopped = (runs.contents(tmp_path / name) for name in ("whole", "stopped"))
    same = [name for name in whole if name.startswith("model/") and name.endswith(".safetensors")]
    assert same and all(whole[name] == stopped[name] for name in same)


def test_what_is_different_is_said(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    changes = IN_BACKWARD | {"train.clip": 1.0, "model.dtype": "bfloat16", "train.steps": 1}
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", changes))
    told = [event.message for event in events.read_events(tmp_path / "run" / "events.jsonl") if isinstance(event, events.Warned)]
    assert any("clipped to train.clip=1 by itself" in message for message in told)
    assert any("rounded to bfloat16 by chance" in message for message in told)


def test_a_step_is_one_row_as_long_as_the_longest(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    changes = {"method": {"name": "full"}, "train.optimizer_in_backward": True, "train.row_tokens": "auto"}
    found = decide(runs.settings(tiny_llama, data, tmp_path / "run", changes), {}, runs.quiet)
    steps = [found.plan.rows(step) for step in range(found.steps)]
    assert all(len(rows) == 1 for rows in steps)
    assert found.run.train.row_tokens == max(rows[0].tokens for rows in steps)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "lora"}}, "those of lora are small: leave it out, or take method.name=full or freeze"),
        ({"data.pack": False}, "data.pack=false gives every document a row of its own"),
        ({"train.row_tokens": 64, "train.tokens_per_step": 300}, "set train.row_tokens="),
    ],
)
def test_what_it_cannot_be_combined_with(tiny_llama: Path, data: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        decide(runs.settings(tiny_llama, data, tmp_path / "run", IN_BACKWARD | changes), {}, runs.quiet)
    assert said in str(refused.value)


def test_what_is_refused_would_fit_as_it_says(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    changes = IN_BACKWARD | {"train.row_tokens": 250, "train.tokens_per_step": 250}
    with pytest.raises(UserError) as refused:
        decide(runs.settings(tiny_llama, data, tmp_path / "run", changes), {}, runs.quiet)
    rows, step = (int(str(refused.value).partition(f"{key}=")[2].split(",")[0].split()[0]) for key in ("row_tokens", "tokens_per_step"))
    assert step < 250 < rows
    decide(runs.settings(tiny_llama, data, tmp_path / "run", changes | {"train.row_tokens": rows}), {}, runs.quiet)


def test_the_checkpoint_has_no_master_of_a_bf16_weight(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    runs.finish(runs.settings(tiny_llama, data, tmp_path / "run", IN_BACKWARD | {"model.dtype": "bfloat16", "train.steps": 1}))
    header = (tmp_path / "run/checkpoints/step-1/optimizer.safetensors").read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert any(name.endswith(".first") for name in names) and not any(name.endswith(".master") for name in names)
