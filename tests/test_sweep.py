"""benchmarks/sweep.py and halving.py: which run comes next, and what becomes of results. No run is made here."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
Curve = Callable[[float, str, int], float | None]  # (rate, settings, tokens) -> loss


@pytest.fixture(scope="module")
def scripts() -> Any:
    """(halving, sweep): scripts that import one another by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("halving"), importlib.import_module("sweep")
    for name in ("halving", "sweep", "measure"):
        sys.modules.pop(name, None)


def played(halving: Any, method: str, curve: Curve, rate: float = 1e-3, tokens: int = 20_000) -> list[Any]:
    """The trials of a whole sweep of one method, in order, where a run's loss is `curve(rate, settings, tokens)`."""
    known: dict[Any, float] = {}
    made: list[Any] = []
    while trials := halving.pending("tickets", method, rate, tokens, known.get):
        assert len(made) < 50, "comes to an end"
        made.append(trials[0])
        loss = curve(trials[0].learning_rate, trials[0].settings, trials[0].tokens)
        known[trials[0]] = halving.FAILED if loss is None else loss
    return made


def bowl(best: float) -> Callable[[float, str, int], float]:
    return lambda rate, settings, tokens: abs(math.log(rate / best)) + 1000 / tokens


def test_rates_come_first_then_longer_runs_of_the_best(scripts: Any) -> None:
    halving, _ = scripts
    made = played(halving, "dora", bowl(2.5e-3))
    assert [(each.learning_rate, each.tokens) for each in made] == [
        (1e-3, 5000), (3e-3, 5000), (3.3e-4, 5000), (9e-3, 5000), (3e-3, 10_000), (1e-3, 10_000), (3e-3, 20_000),
    ]  # fmt: skip
    further = 5000
    assert sum(each.tokens for each in made) == halving.planned_tokens("dora", 20_000) + further and made[0].settings == "{}"


@pytest.mark.parametrize(("best", "found"), [(4e-2, 2.7e-2), (9e-5, 1.1e-4)])
def test_a_best_rate_at_an_end_is_gone_beyond(scripts: Any, best: float, found: float) -> None:
    made = played(scripts[0], "dora", bowl(best))
    assert (made[-1].learning_rate, made[-1].tokens) == (found, 20_000)


def test_it_does_not_go_on_for_ever(scripts: Any) -> None:
    made = played(scripts[0], "dora", bowl(1e9))
    assert max(each.learning_rate for each in made) == 8.1e-2 and made[-1].learning_rate == 8.1e-2


def test_other_first_values_are_tried_at_the_best_rate(scripts: Any) -> None:
    def curve(rate: float, settings: str, tokens: int) -> float:
        return bowl(3e-3)(rate, settings, tokens) - ("vocabulary" in settings)

    made = played(scripts[0], "prompt", curve)
    others = [(each.learning_rate, each.settings) for each in made if each.settings != "{}" and each.tokens == 5000]
    assert others == [(3e-3, '{"init": "vocabulary"}'), (3e-3, '{"init": "random"}')]
    assert made[-1].settings == '{"init": "vocabulary"}' and made[-1].tokens == 20_000


def test_failed_runs_are_the_worst(scripts: Any) -> None:
    made = played(scripts[0], "dora", lambda rate, *rest: None if rate > 2e-3 else bowl(1e-2)(rate, *rest))
    assert made[-1].learning_rate == 1e-3
    assert {each.tokens for each in played(scripts[0], "dora", lambda *_: None)} == {5000}, "nothing to go on with"


def test_every_method_gets_its_first_result_before_any_its_second(scripts: Any) -> None:
    halving, _ = scripts
    known: dict[Any, float] = {}
    asks = [lambda name=name: halving.pending("tickets", name, 1e-3, 400, known.get) for name in ("lora", "dora", "prompt")]
    order = []
    for trial in halving.in_turn(asks):
        order.append(trial)
        known[trial] = bowl(1e-3)(trial.learning_rate, trial.settings, trial.tokens)
    assert [each.method for each in order[:6]] == ["lora", "dora", "prompt", "lora", "dora", "prompt"]
    assert len(order) == len(set(order)) and not any(ask() for ask in asks)


def test_the_settings_that_are_tried_exist(scripts: Any) -> None:
    for method, others in scripts[0].OTHERS.items():
        assert method in METHODS
        assert all(SETTINGS[method](**settings) != SETTINGS[method]() for settings in others)


def line(**values: Any) -> dict[str, Any]:
    common = {"dataset": "tickets", "method": "lora", "settings": "{}", "learning_rate": 1e-3, "tokens": 5000, "before": 3.0, "after": 2.0}
    measured = {"seconds": 9.0, "process_seconds": 12.0, "peak_memory_bytes": 10**9, "trainable_parameters": 5, "model_parameters": 50}
    return common | measured | {"examples": 40} | values


def test_what_is_known_is_found_by_its_whole_key(scripts: Any) -> None:
    halving, sweep = scripts
    known = sweep.Known([{"dataset": "tickets", "method": "", "after": 3.0}, line(), line(tokens=10_000, after=None)])
    trial = halving.Trial("tickets", "lora", "{}", 1e-3, 5000)
    assert known.loss(trial) == 2.0
    assert known.loss(halving.Trial("tickets", "lora", "{}", 1e-3, 10_000)) == halving.FAILED
    assert known.loss(halving.Trial("tickets", "lora", '{"rank": 32}', 1e-3, 5000)) is None


def test_the_table_and_the_evidence_take_the_longest_runs(scripts: Any) -> None:
    _, sweep = scripts
    short, whole = line(after=0.5, learning_rate=9e-3), line(tokens=20_000, after=1.5)
    known = sweep.Known([short, whole, line(dataset="sst2", tokens=10_000), line(method="dora", tokens=20_000, after=None)])
    assert sweep.finals(known, 20_000) == [whole, line(dataset="sst2", tokens=10_000)]
    text = "\n".join(sweep.table(known, 20_000, 576))
    assert "| tickets | lora | 0.001 | defaults | 20,000 | 3.000 | 1.500 | 9 | 1000 |" in text
    assert f"| lora | 0.001 (0.001, 0.001) | {METHODS['lora'].LEARNING_RATES[576]:g} |" in text
    [row] = sweep.evidence_rows(known, 20_000, sweep.MODEL)
    assert (row.method, row.task_kind, row.score, row.score_before, row.score_name) == ("lora", "extraction", 1.5, 3.0, "loss")
    assert row.model == "smollm2-135m-instruct" and row.source.startswith("benchmarks/sweep.py: ")


def test_held_out_rows_are_not_learned(scripts: Any, tmp_path: Path) -> None:
    _, sweep = scripts
    (tmp_path / "sst2").mkdir()
    text = "".join(f"{number % 2} sentence number {number} .\n" for number in range(100))
    (tmp_path / "sst2/train.txt").write_text(text)
    (tmp_path / "work").mkdir()
    found = sweep.data(["tickets", "sst2"], tmp_path, tmp_path / "work")
    train, held_out = (Path(name).read_text().splitlines() for name in found["sst2"])
    assert len(held_out) == sweep.HELD_OUT and len(train) == 100 - sweep.HELD_OUT and not set(train) & set(held_out)
    assert found["tickets"] == ("builtin:tickets", f"builtin:tickets-test#{sweep.HELD_OUT}")
    assert '"completion": "negative"' in "".join(train) and list(sweep.data(["sst2"], None, tmp_path)) == []


def test_the_time_that_is_left(scripts: Any) -> None:
    halving, sweep = scripts
    known = sweep.Known([line(method="dora", tokens=5000, process_seconds=10.0)])
    assert sweep.time_left(known, ["tickets"], ["dora"], 20_000) == (halving.planned_tokens("dora", 20_000) - 5000) * 10 / 5000
