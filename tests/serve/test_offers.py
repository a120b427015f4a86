"""What is to be served is read, and refused, before anything is loaded."""

from pathlib import Path

import pytest

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.models.source import locate
from tunesmith.serve import offers


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = runs.write_rows(folder / "rows.jsonl")
    runs.finish(runs.settings(tiny_llama, data, folder / "support", {"train.steps": 2, "data.thinking": "drop"}))
    return folder / "support"


def test_adapters_of_one_base_are_offered_by_folder_or_by_name(run: Path, tiny_llama: Path) -> None:
    found = offers.read([str(run), f"sales={run}", f"plain={run / 'adapter'}"])
    assert list(found.adapters) == ["support", "sales", "plain"]
    assert found.base.base == str(tiny_llama) and not found.nf4 and found.name == ""
    assert {each.adapter for each in found.adapters.values()} == {run / "adapter"}
    assert found.adapters["plain"].run is None


def test_a_model_by_itself_and_a_name_for_it(tiny_llama: Path, run: Path) -> None:
    alone = offers.read([f"mine={tiny_llama}"])
    assert (alone.base.base, alone.name, alone.adapters) == (str(tiny_llama), "mine", {})
    beside = offers.read([f"mine={tiny_llama}", str(run)])
    assert (beside.base.base, beside.name) == (str(tiny_llama), "mine") and list(beside.adapters) == ["support"]


def test_every_misfit_at_once(run: Path, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as refused:
        offers.read([str(run), str(run), str(tiny_llama), f"second={tiny_llama}", str(tmp_path / "empty")])
    said = "\n".join(refused.value.problems)
    assert "two models are to be called support; write NAME=DIR" in said
    assert "one server has one base" in said and "neither a run folder, nor an adapter" in said


def test_the_catalog_s_models_are_fed_as_they_were_trained(run: Path) -> None:
    found = offers.read([str(run)])
    fed = offers.feeding(locate(found.base.base), found.name, found.base.run)
    assert fed.base.name == "tiny-llama" and fed.base.renderer.thinking == "keep"
    model = fed.adapter("support", found.adapters["support"])
    assert model.renderer.thinking == "drop"
    assert model.base == "tiny-llama" and model.facts["method"] == "lora" and model.folder == run / "adapter"


def test_a_run_of_another_place_s_base_takes_the_one_that_is_named(run: Path, tiny_llama: Path) -> None:
    found = offers.read([str(run)], model=str(tiny_llama))
    assert found.base.base == str(tiny_llama) and found.adapters["support"].base == str(tiny_llama)
