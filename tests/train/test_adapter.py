"""An adapter to go on from: found in a run folder or by itself, opened as what this run makes of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.methods.settings import SETTINGS
from tunesmith.train.adapter import adapter_folder, refuse_idle
from tunesmith.train.setting import decide


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def done(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PiSSA over NF4."""
    out = tmp_path_factory.mktemp("pissa") / "run"
    changes = {"method": {"name": "pissa", "rank": 4}, "model.quantize": "nf4", "train.steps": 1}
    runs.finish(runs.settings(tiny_llama, data, out, changes))
    return out


def test_a_run_folder_stands_for_its_adapter(done: Path, tmp_path: Path) -> None:
    assert adapter_folder(str(done)) == adapter_folder(str(done / "adapter")) == done / "adapter"
    shutil.copytree(done / "adapter", tmp_path / "other")
    assert adapter_folder(str(tmp_path / "other")) == tmp_path / "other"
    with pytest.raises(UserError, match=r"neither a run folder nor an adapter folder \(adapter_config\.json is missing\)"):
        adapter_folder(str(tmp_path))


def test_where_it_begins_otherwise_than_it_ended_that_is_said(done: Path, tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": {"name": "pissa"}, "model.adapter": str(done)}
    notes = decide(runs.settings(tiny_llama, data, tmp_path / "run", changes), {}, runs.quiet).notes
    assert [note for note in notes if "goes on over weights that are not rounded" in note]
    notes = decide(runs.settings(tiny_llama, data, tmp_path / "run", changes | {"model.quantize": "nf4"}), {}, runs.quiet).notes
    assert not [note for note in notes if "not rounded" in note]


def test_every_setting_that_says_how_to_begin_is_named() -> None:
    with pytest.raises(UserError) as refused:
        refuse_idle(SETTINGS["lora"].model_validate({"init": "loftq", "loftq_iterations": 3, "rank": 4, "dropout": 0.1}), {"rank"})
    assert [problem.split()[0] for problem in refused.value.problems] == ["method.init", "method.loftq_iterations"]
    refuse_idle(SETTINGS["lora"].model_validate({"init": "loftq", "rank": 4, "plus_ratio": 16.0}), {"rank", "init"})
