from pathlib import Path

import pytest
import torch

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import events
from tunesmith.methods import method
from tunesmith.methods.settings import Full, LoRA
from tunesmith.models import load as loading
from tunesmith.models.proof import Proof
from tunesmith.train import figures
from tunesmith.train.checkpoint import Clock, Progress
from tunesmith.train.setting import decide

IN_BLOCKS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # weights of the tiny model's linear layers
HEAD = 64 * 384


def step(number: int, loss: float, learned: int, skipped: bool = False) -> events.Step:
    return events.Step(
        step=number, loss=loss, learning_rate=0.1, grad_norm=1.0, tokens=10, computed_tokens=10, learned_tokens=learned,
        tokens_per_second=5.0, peak_memory_bytes=1, skipped=skipped,
    )  # fmt: skip


def test_the_last_loss_is_a_mean_over_learned_tokens() -> None:
    assert figures.last_loss([step(i, 9.0, 1) for i in range(18)] + [step(19, 1.0, 30), step(20, 2.0, 10)]) == 1.25
    assert figures.last_loss([step(1, 9.0, 5), step(2, 3.0, 5)]) == 3.0
    assert figures.last_loss([step(1, 9.0, 5), step(2, float("nan"), 5, skipped=True)]) == 9.0
    assert str(figures.last_loss([step(1, float("nan"), 5, skipped=True)])) == "nan"


def test_speed_is_that_of_the_steps_after_the_first() -> None:
    clock, progress = Clock(), Progress(step=1, tokens=100)
    figures.count(clock, progress, 100, 3.0, 4.0)
    assert clock.seconds_to_first_step == 4.0 and figures.speed(clock, progress) == 25.0, "one step only"
    progress.step, progress.tokens = 2, 300
    figures.count(clock, progress, 200, 2.0, 6.0)
    assert figures.speed(clock, progress) == 100.0
    clock.seconds_after_first += 2.0  # an evaluation
    assert figures.speed(clock, progress) == 50.0


def test_the_clock_goes_on_over_sittings() -> None:
    clock = Clock(seconds=10.0)
    assert figures.with_sitting(clock, 5.0).seconds == 15.0 and clock.seconds == 10.0


@pytest.mark.parametrize(
    ("settings", "flops"),
    [
        (LoRA(rank=4), lambda trained: 4 * IN_BLOCKS + 6 * trained + 4 * HEAD * 0.25),
        (Full(), lambda trained: 6 * IN_BLOCKS + 6 * HEAD * 0.25),
    ],
    ids=["lora", "full"],
)
def test_flops_of_a_token(settings: LoRA | Full, flops, tiny_llama: Path) -> None:  # type: ignore[no-untyped-def]
    base = loading.load(tiny_llama, dtype=torch.float32)
    tuning = method.build(base.model, settings, quantized=False, device="meta")
    assert figures.flops_per_token(base, tuning, 0.25) == flops(tuning.count)


def test_the_preview_says_what_the_plan_will(tiny_llama: Path, tmp_path: Path) -> None:
    data = runs.write_rows(tmp_path / "rows.jsonl")
    setting = decide(runs.settings(tiny_llama, data, tmp_path / "run", {"data.evaluate": 0.25}), {}, runs.quiet)
    plan = figures.plan_json(setting, setting.tuning, Proof(True, True, ()))
    text = "\n".join(figures.preview(setting))
    assert plan["trainable_parameters"] == setting.tuning.count and f"{plan['trainable_parameters']:,} trainable parameters" in text
    assert f"{plan['total_parameters']:,} parameters, float32 on cpu" in text
    assert f"steps    {plan['steps']} of about 200 tokens, {plan['tokens']:,} tokens in all" in text
    assert "evaluated on 6 rows" in text and "18 rows: 18 kept, 0 cut, 0 split, 0 dropped" in text
    assert f"writes   {tmp_path / 'run'}/: run.yaml" in text and " adapter/ " in text
    assert not (tmp_path / "run").exists()
