from pathlib import Path

import pytest

from tests.export.tiny_runs import run_of
from tests.runs import own_cache  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export.source import describe
from tunesmith.methods.layouts import layout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


def test_a_run_with_an_adapter(tiny_llama: Path, place: Path) -> None:
    run = run_of(tiny_llama, place, "lora", **{"data.thinking": "drop"})
    source = describe(str(run))
    assert (source.name, source.run, source.adapter, source.quantized) == ("lora", run, run / "adapter", False)
    assert source.base == tiny_llama and source.base_name == str(tiny_llama.resolve())
    assert all(parameter.device.type == "meta" for module in source.tuning.adapter.values() for parameter in module.parameters())
    assert source.renderer.thinking == "drop", "fed as it was trained"


def test_an_adapter_folder_and_the_base_that_it_does_not_name(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    adapter = run_of(tiny_llama, place, "lora") / "adapter"
    named = describe(str(adapter))
    assert (named.name, named.run, named.adapter, named.base) == ("adapter", None, adapter, tiny_llama)
    config = layout.config_of(adapter)
    text = (adapter / "adapter_config.json").read_text().replace(config["base_model_name_or_path"], "")
    for file in adapter.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match="give it with --model"):
        describe(str(tmp_path))
    assert describe(str(tmp_path), model=str(tiny_llama)).base == tiny_llama


def test_a_whole_model_and_a_base(tiny_llama: Path, place: Path) -> None:
    run = run_of(tiny_llama, place, "full", **{"method": {"name": "full"}, "train.learning_rate": 0.001})
    source = describe(str(run))
    assert source.name == "full" and source.adapter is None and source.base == run / "model" and not source.tuning.adapter
    base = describe(str(tiny_llama))
    assert (base.name, base.run, base.adapter) == ("tiny-llama", None, None)


def test_trained_over_nf4(tiny_llama: Path, place: Path) -> None:
    assert describe(str(run_of(tiny_llama, place, "qlora", method={"name": "qlora", "rank": 4}))).quantized


def test_a_run_without_a_result(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    done = run_of(tiny_llama, place, "lora")
    (tmp_path / "run.yaml").write_bytes((done / "run.yaml").read_bytes())
    with pytest.raises(UserError, match="without a result yet; finish it with `tunesmith resume"):
        describe(str(tmp_path))
