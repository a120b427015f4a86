import io
from typing import Any

import pytest
from rich.console import Console

from tunesmith import config, events
from tunesmith.errors import UserError
from tunesmith.verbs import progress

STARTED = events.Started(
    run="run", total_steps=100, total_tokens=50_000, trainable_parameters=1000, total_parameters=100_000, device="cpu", threads=2,
    matmul_flops=2e11, flops_per_token=1e8,
)  # fmt: skip
FINISHED = events.Finished(
    steps=100, loss=0.5, tokens=50_000, computed_tokens=50_000, learned_tokens=9_000, seconds=75.4, seconds_to_first_step=1.0,
    tokens_per_second=1000.0, peak_memory_bytes=2_500_000_000,
)  # fmt: skip


def step(number: int) -> events.Step:
    return events.Step(
        step=number, loss=1.25, learning_rate=0.1, grad_norm=1.0, tokens=500, computed_tokens=500, learned_tokens=90,
        tokens_per_second=1000.0, peak_memory_bytes=2_500_000_000,
    )  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands where its only entry says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def console(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """stderr as a terminal, or as a file."""
    written = io.StringIO()

    def make(**named: Any) -> Console:
        return Console(**(named | {"stderr": False}), file=written, force_terminal=terminal, width=160, legacy_windows=False)

    monkeypatch.setattr(progress, "Console", make)
    return written


def test_plain_lines_come_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    written = console(monkeypatch, terminal=False)

    def happening() -> Any:
        yield STARTED
        for number in range(1, 101):
            clock[0] += 1.0
            yield step(number)
        yield FINISHED

    assert progress.follow(happening()) is FINISHED
    lines = written.getvalue().splitlines()
    assert lines[0] == "run: 100 steps, 50,000 tokens; 1,000 of 100,000 parameters (1.00%); cpu, 2 threads, 200 GFLOP/s measured"
    assert lines[1] == "step 1/100  loss 1.2500  1,000 tok/s  50% of matmul rate  2.50 GB  50 s left"
    assert [int(line.split("/")[0].split()[1]) for line in lines[1:]] == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100]
    assert lines[-1].endswith(" 0 s left")


def test_what_else_happens_is_said(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    written = console(monkeypatch, terminal=False)
    found = progress.follow(
        [
            events.Resumed(step=3, dropped_events=1),
            events.Warned(message="targets [q,v] of :smile: rows.jsonl:3", step=4),
            events.Evaluated(step=4, loss=1.5, learned_tokens=9, best=True),
            events.Saved(step=4, path="checkpoints/step-4", seconds=0.1),
        ]
    )
    assert found is None
    assert written.getvalue().splitlines() == [
        "going on after step 3",
        "! targets [q,v] of :smile: rows.jsonl:3",
        "step 4: evaluation loss 1.5000 (best)",
    ]


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    written = console(monkeypatch, terminal=True)
    progress.follow([STARTED, *[step(number) for number in range(1, 101)], events.Warned(message="targets [q,v]", step=4), FINISHED])
    text = written.getvalue()
    assert "100/100" in text and "━" in text and "loss 1.2500  1,000 tok/s  50% of matmul rate  2.50 GB" in text
    assert "! targets [q,v]" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_passes_and_leaves_the_terminal_tidy(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written = console(monkeypatch, terminal)

    def happening() -> Any:
        yield STARTED
        yield step(1)
        raise UserError("the disk is full")

    with pytest.raises(UserError):
        progress.follow(happening())
    assert not terminal or "\x1b[?25h" in written.getvalue(), "the cursor is shown again"


def test_the_result_in_one_line() -> None:
    assert progress.summary(FINISHED, "runs/a") == (
        "runs/a: 100 steps, loss 0.5000, 50,000 tokens in 1 min 15 s (1,000 tokens/s), peak memory 2.50 GB"
    )
    spelled = [progress.spell_seconds(seconds) for seconds in (0.4, 59.4, 59.6, 3599.7, 3600, 7384)]
    assert spelled == ["0 s", "59 s", "1 min 00 s", "1 h 00 min", "1 h 00 min", "2 h 03 min"]


@pytest.mark.parametrize(
    ("task", "kind", "beside"),
    [
        ({}, "adapter", True),
        ({}, "model", False),
        ({"name": "tag"}, "adapter", False),
        ({"name": "classify", "head": "words"}, "adapter", True),
    ],
)
def test_a_run_is_compared_with_its_base_where_that_can_answer(tmp_path, task, kind, beside) -> None:
    (tmp_path / kind).mkdir()
    run = config.parse({"model": {"source": "m"}, "data": {"train": "d"}, "task": task})
    (tmp_path / "run.yaml").write_text(config.dump(run))
    assert progress.to_talk(tmp_path) == f"tunesmith chat {tmp_path}" + (" --compare" if beside else "")
