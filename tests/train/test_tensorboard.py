import sys
from pathlib import Path

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import events
from tunesmith.errors import Interrupted, UserError
from tunesmith.train import loop, tensorboard


def test_the_cure_is_said_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"train.tensorboard needs the package tensorboard: pip install tensorboard"):
        tensorboard.require()


def test_only_steps_and_evaluations_have_curves() -> None:
    evaluated = events.Evaluated(step=3, loss=1.5, learned_tokens=9, best=True, scores={"accuracy": 0.5})
    assert tensorboard.scalars(evaluated) == {"evaluate/loss": 1.5, "evaluate/accuracy": 0.5}
    assert tensorboard.scalars(events.Saved(step=3, path="x", seconds=1.0)) == {}


def test_curves_are_those_of_the_log_also_after_a_resume(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data, out = runs.write_rows(tmp_path / "rows.jsonl"), tmp_path / "run"
    run = runs.settings(tiny_llama, data, out, {"train.tensorboard": True, "data.evaluate": 0.25, "evaluate.every": 3})
    happening = loop.train(run, tell=runs.quiet)
    for event in happening:
        if isinstance(event, events.Step) and event.step == 5:
            break
    happening.close()  # type: ignore[attr-defined]  # a kill: steps 4 and 5 are lost
    with pytest.raises(Interrupted):
        list(loop.resume(out, stop=runs.stop_after(1), tell=runs.quiet))
    list(loop.resume(out, tell=runs.quiet))

    read = EventAccumulator(str(out / tensorboard.FOLDER))  # type: ignore[no-untyped-call]
    read.Reload()  # type: ignore[no-untyped-call]
    log = list(events.read_events(out / "events.jsonl"))
    steps = [event for event in log if isinstance(event, events.Step)]
    curve = read.Scalars("train/loss")  # type: ignore[no-untyped-call]
    assert [point.step for point in curve] == [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in curve] == pytest.approx([step.loss for step in steps])
    assert [point.wall_time for point in curve] == pytest.approx([step.time for step in steps])
    evaluated = [event for event in log if isinstance(event, events.Evaluated)]
    assert [(p.step, p.value) for p in read.Scalars("evaluate/loss")] == [(e.step, pytest.approx(e.loss)) for e in evaluated]  # type: ignore[no-untyped-call]
    assert read.Tags()["scalars"] == [  # type: ignore[no-untyped-call]
        "train/loss", "train/learning_rate", "train/grad_norm", "speed/tokens_per_second", "memory/peak_bytes", "evaluate/loss",
    ]  # fmt: skip
