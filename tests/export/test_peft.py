"""Adapter folders of every method that peft knows, opened by peft over the base; what it does not know is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.export.tiny_runs import run_of
from tests.runs import own_cache, quiet  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import peft
from tunesmith.export.source import describe
from tunesmith.export.target import Options
from tunesmith.export.truth import truth_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"method": {"name": "dora", "rank": 4}},
    "pissa": {"method": {"name": "pissa", "rank": 4}},
    "tokens": {"method": {"name": "lora", "rank": 4, "trainable_tokens": [256, 257], "modules_to_save": ["model.norm"]}},
    "prompt": {"method": {"name": "prompt", "tokens": 3}},
    "prefix": {"method": {"name": "prefix", "tokens": 3, "encoder": "none"}},
    "qlora": {"method": {"name": "qlora", "rank": 4}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peft")


@pytest.mark.parametrize("name", METHODS)
def test_peft_computes_what_we_do(name: str, tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    sources = [describe(str(run_of(tiny_llama, place, name, **METHODS[name])))]
    peft.check(sources, Options())
    truth = truth_of(sources[0], peft.merges(sources, Options()), quiet)
    facts = peft.write(sources, tmp_path / "out", Options(), quiet)
    proof = peft.prove(sources, [truth], tmp_path / "out", Options(), quiet)
    assert proof.failures == () and proof.opened_by.startswith("peft 0.") and proof.figures["positions"] > 100
    assert facts["trained_over"] == ("nf4" if name == "qlora" else "the base's own weights")
    assert any("trained over NF4" in note for note in proof.notes) == (name == "qlora")
    assert truth.base_answers != truth.answers


def test_the_base_is_named_and_not_copied(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    sources = [describe(str(run_of(tiny_llama, place, "dora", **METHODS["dora"])))]
    peft.write(sources, tmp_path / "out", Options(), quiet)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tunesmith.json", "README.md",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_llama.resolve())
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f'AutoModelForCausalLM.from_pretrained("{tiny_llama.resolve()}")' in readme
    assert AutoTokenizer.from_pretrained(tiny_llama) is not None


def test_a_head_is_opened_over_the_class_that_classifies(tiny_llama: Path, place: Path, tmp_path: Path) -> None:
    rows = place / "labelled.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{word} {n}", "label": word}) + "\n" for n in range(12) for word in ("good", "bad")))
    run = place / "headed"
    from tests import runs

    runs.finish(runs.settings(tiny_llama, rows, run, {"task.name": "classify", "train.steps": 2}))
    sources = [describe(str(run))]
    peft.check(sources, Options())
    truth = truth_of(sources[0], False, quiet)
    peft.write(sources, tmp_path / "out", Options(), quiet)
    assert peft.prove(sources, [truth], tmp_path / "out", Options(), quiet).failures == ()
    assert "AutoModelForSequenceClassification" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"name": "adapter"}, "peft knows no adapters that are layers inside of blocks"),
        ({"name": "full"}, "--to safetensors"),
    ],
)
def test_what_peft_does_not_know_is_refused(settings: dict[str, Any], reason: str, tiny_llama: Path, place: Path) -> None:
    source = describe(str(run_of(tiny_llama, place, settings["name"], **{"method": settings, "train.learning_rate": 0.001})))
    with pytest.raises(UserError, match=reason):
        peft.check([source], Options())


def test_without_peft_it_says_what_to_do(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="pip install peft, or --no-verify"):
        peft._peft()
