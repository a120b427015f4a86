from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunesmith.config import parse
from tunesmith.errors import UserError
from tunesmith.step import compiled, fp8
from tunesmith.train import engine, folder

CPU = torch.device("cpu")


def run_of(method: str = "lora", **train: Any) -> Any:
    return parse({"method": {"name": method}, "train": {"threads": 2, **train}})


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "impossible", lambda device: "")


def test_everything_that_cannot_be_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "impossible", lambda device: "no C++ compiler on this machine")
    with pytest.raises(UserError) as error:
        engine.refuse(run_of("full", compile=True, fp8=True), CPU)
    assert len(error.value.problems) == 4
    assert "no C++ compiler" in error.value.problems[0] and "8.9" in error.value.problems[1] and "full" in error.value.problems[2]


def test_auto_is_refused_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "impossible", lambda device: "no C++ compiler on this machine")
    engine.refuse(run_of(), CPU)
    assert engine.compiles(run_of(), CPU, torch.float32, 40, 1e20) == (False, "no C++ compiler on this machine")


def test_dora_is_not_compiled(compiler: None) -> None:
    on, why = engine.compiles(run_of("dora"), CPU, torch.float32, 40, 1e20)
    assert not on and "dora" in why
    with pytest.raises(UserError, match=r"train\.compile: dora"):
        engine.refuse(run_of("dora", compile=True), CPU)


def test_auto_goes_by_the_work_of_the_run(compiler: None) -> None:
    assert engine.compiles(run_of(), CPU, torch.float32, 40, 1e12) == (False, "40 steps would not pay for about 60 s of compiling")
    assert engine.compiles(run_of(), CPU, torch.float32, 90_000, 1e18) == (True, "90,000 steps pay for about 60 s of compiling")


def test_the_preview_says_why() -> None:
    assert engine.said(run_of(compile=False), {"train.compile": "auto: 40 steps would not pay"}) == "no: 40 steps would not pay"
    assert engine.said(run_of(compile=True), {}) == "yes"


def test_blocks_that_are_not_there_are_told_not_raised() -> None:
    model: Any = torch.nn.Linear(2, 2)
    assert engine.compiled_blocks(run_of(compile=False), model) == (None, [])
    switch, told = engine.compiled_blocks(run_of(compile=True), model)
    assert switch is None and "no repeated blocks" in told[0]


def test_leaving_8_bits_is_remembered(tmp_path: Path) -> None:
    folder.write_json(tmp_path / folder.PLAN, {"steps": 500})
    losses = iter([2.5, 2.0])
    held: Any = SimpleNamespace(on=lambda: None, off=lambda: None)
    forward: Any = SimpleNamespace(mean_loss=lambda rows: (next(losses), 9))
    assert engine.left_fp8(tmp_path, held, forward, None, fp8.EVERY + 1) == "", "not every step is looked at"  # type: ignore[arg-type]
    assert engine.kept(tmp_path) == {}
    assert "drifted" in engine.left_fp8(tmp_path, held, forward, None, 2 * fp8.EVERY)  # type: ignore[arg-type]
    assert engine.kept(tmp_path) == {engine.FP8_UNTIL: 2 * fp8.EVERY}
    assert folder.read_json(tmp_path / folder.PLAN)["steps"] == 500
    nothing: Any = None
    assert engine.eighths(tmp_path, run_of(fp8=True), nothing, nothing, nothing, 2 * fp8.EVERY) == (None, [])


# --- CUDA graphs ---

CARD = torch.device("cuda")


def test_recorded_launches_are_refused_on_a_cpu_and_left_off_by_auto() -> None:
    with pytest.raises(UserError, match=r"train\.cuda_graphs: .* the run is on cpu"):
        engine.refuse(run_of(cuda_graphs=True), CPU)
    on, why = engine.recorded(run_of(), CPU, 10**8)
    assert not on and "on cpu" in why


@pytest.mark.parametrize(
    ("method", "train"),
    [
        ("dora", {}),
        ("prompt", {}),
        ("lora", {"fp8": True}),
        ("lora", {"compile": True}),
        ("full", {"optimizer_in_backward": True}),
        ("lora", {"recompute": "blocks"}),
        ("lora", {"recompute": "offload"}),
    ],
)
def test_what_cannot_be_recorded_has_a_reason(method: str, train: dict[str, Any]) -> None:
    run = run_of(method, **train)
    why = engine.not_recorded(run, CARD)
    assert next(iter(train), method) in why
    assert engine.recorded(run, CARD, 10**8) == (False, why)


def test_recordings_that_were_asked_for_are_not_taken_away_by_auto(compiler: None) -> None:
    run = run_of(cuda_graphs=True)
    assert engine.compiles(run, CPU, torch.float32, 90_000, 1e18) == (False, "train.cuda_graphs records the blocks as they are")


def test_auto_records_small_models_on_a_card() -> None:
    assert engine.recorded(run_of(), CARD, 1_500_000_000) == (True, "1.5B parameters: launches are much of a step")
    assert engine.recorded(run_of(), CARD, 7_000_000_000) == (False, "7.0B parameters: their products take longer than their launches")
    assert "dropout" in engine.not_recorded(parse({"method": {"name": "lora", "dropout": 0.1}}), CARD)
