import re
from pathlib import Path

import pytest
import yaml

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith import config, events
from tunesmith.train import folder, report


@pytest.fixture(scope="module")
def done(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was evaluated, with a row that was cut."""
    place = tmp_path_factory.mktemp("done")
    data = runs.write_rows(place / "rows.jsonl")
    with open(data, "a", encoding="utf-8") as file:
        file.write('{"prompt": "Spell all", "completion": "' + "and " * 100 + '"}\n')
    changes = {"data.evaluate": 0.2, "evaluate.every": 2, "data.max_length": 128, "method": {"name": "qlora", "rank": 4}}
    runs.finish(runs.settings(tiny_llama, data, place / "run", changes))
    return place / "run"


def test_the_curve_is_a_picture(done: Path) -> None:
    content = (done / "loss.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (960, 540)


def test_the_curve_shows_every_step_and_evaluation(done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from matplotlib.axes import Axes

    drawn = {}
    plot = Axes.plot

    def spy(self, x, y, *rest, **named):  # type: ignore[no-untyped-def]
        drawn[named["label"]] = (list(x), list(y))
        return plot(self, x, y, *rest, **named)

    monkeypatch.setattr(Axes, "plot", spy)
    report.plot(done / "events.jsonl", tmp_path / "loss.png")
    log = list(events.read_events(done / "events.jsonl"))
    assert drawn["each step"] == ([1, 2, 3, 4, 5, 6], [event.loss for event in log if isinstance(event, events.Step)])
    assert drawn["evaluation"] == ([2, 4, 6], [event.loss for event in log if isinstance(event, events.Evaluated)])


def test_the_card_s_numbers_are_those_of_the_files(done: Path) -> None:
    text = (done / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    run = config.load(done / "run.yaml").run
    assert yaml.safe_load(front) == {"base_model": run.model.source, "library_name": "peft", "tags": ["tunesmith", "qlora"]}
    (finished,) = [event for event in events.read_events(done / "events.jsonl") if isinstance(event, events.Finished)]
    plan, data = folder.read_json(done / "plan.json"), folder.read_json(done / "data.json")
    table = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", body, re.MULTILINE))
    assert table["training data"] == f"{run.data.train}: 20 rows, 20 documents"
    assert table["tokens of it"] == f"{data['tokens']:,}, of which {data['learned_tokens']:,} learned"
    assert table["rows cut / dropped"] == f"{data['cut']} / {len(data['dropped'])}" and data["cut"] + data["kept"] == 20
    assert table["steps, tokens seen"] == f"6, {finished.tokens:,}"
    assert table["loss at the end"] == f"{finished.loss:.4f}"
    assert table["learning rate"] == "0.005, cosine"
    assert table["peak memory"] == f"{finished.peak_memory_bytes / 1e9:.2f} GB"
    assert f"({plan['trainable_parameters']:,} of {plan['total_parameters']:,} parameters)" in body
    best = min((event for event in events.read_events(done / "events.jsonl") if isinstance(event, events.Evaluated)), key=lambda e: e.loss)
    assert table["best evaluation loss"] == f"{best.loss:.4f} after step {best.step}, in best/"
    assert f"tunesmith merge {done} OUT" in body


def test_the_card_says_how_far_a_served_adapter_is_from_what_was_trained(done: Path, tmp_path: Path) -> None:
    assert "away in its weights" not in (done / "README.md").read_text()
    (tmp_path / "tunesmith.json").write_text('{"pissa": {"weight_difference": {"original": 0.0834, "nf4": 0.12}}}')
    assert report._served(tmp_path) == [
        "| the adapter over the original weights | is 8.3% away in its weights from what was trained; `tunesmith merge` makes just that |"
    ]
    assert report._served(tmp_path / "none") == []


def test_a_running_mean_has_no_pull_of_its_first_value() -> None:
    assert report.smoothed([4.0]) == [4.0]
    assert report.smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    falling = report.smoothed([10.0] + [1.0] * 99)
    assert falling[0] == 10.0 and falling[-1] == pytest.approx(1.0, abs=1e-3)


def test_several_sources_are_named() -> None:
    sources = [{"source": "a.jsonl", "weight": 2.0}, {"source": "b.csv"}]
    assert report._source(config.parse({"data": {"train": sources}})) == "a.jsonl (weight 2), b.csv (weight 1)"
