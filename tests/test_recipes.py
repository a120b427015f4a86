"""Every recipe loads, is decided on a file of its own shape, and one is trained."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tunesmith import config, events
from tunesmith.train import loop
from tunesmith.train.setting import Setting, decide

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def rows_for(name: str) -> str:
    """A small file in the shape that a recipe's comments promise; its name."""
    rows: list[dict[str, Any]] = []
    if name == "chinese":
        rows = [{"instruction": f"把{i}写成汉字。", "input": "", "output": "零一二三四五六七"[i]} for i in range(8)]
        rows.append({"instruction": "空的回答", "input": "", "output": ""})
    elif name == "json_extraction":
        rows = [{"userInput": {"text": f"{i} people"}, "labels": [{"slot": "people", "valueSpan": {"endIndex": 8}}]} for i in range(8)]
        rows.append({"userInput": {"text": "Hello"}})
    elif name == "classification_as_text":
        with open("rows.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "category"], *[[f"Where is card {i}, please?", "card_arrival"] for i in range(8)]])
        return "rows.csv"
    elif name == "raw_text":
        Path("corpus").mkdir()
        for i in range(3):
            Path(f"corpus/{i}.txt").write_text(f"Chapter {i}. " + "And so it went on. " * 80, encoding="utf-8")
        return "corpus"
    else:
        return "builtin:tickets#16"
    Path("rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return "rows.json"


def decided(name: str, model: Path, *settings: tuple[str, object]) -> Setting:
    data = rows_for(name)
    words = [("model.source", str(model)), ("data.train", data), ("data.test", data), ("data.evaluate", 0.3), *settings]
    loaded = config.load(RECIPES[name], [(key, value, "test") for key, value in words])
    return decide(loaded.run, loaded.origins)


def test_the_recipes_are_these() -> None:
    wanted = "lora qlora full freeze chinese classification_as_text json_extraction raw_text"
    assert set(wanted.split()) <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_says_how_it_is_run(name: str) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    run = config.load(RECIPES[name]).run
    assert run.model.source and run.data.train
    assert f"tunesmith train recipes/{name}.yaml" in text
    assert sum("#" in line for line in text.splitlines()) >= 8, "a recipe is there for its advice"


@pytest.mark.parametrize("name", RECIPES)
def test_advice_that_is_commented_out_would_load(name: str, tmp_path: Path) -> None:
    """`  # key: value` is a setting to be tried: it must exist where it stands."""
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    tried = [line.replace("# ", "", 1) if line.startswith("  # ") and ": " in line else line for line in lines]
    (tmp_path / "tried.yaml").write_text("\n".join(tried), encoding="utf-8")
    config.load(tmp_path / "tried.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_decided_on_data_of_its_shape(name: str, tiny_llama: Path) -> None:
    setting = decided(name, tiny_llama)
    assert setting.report["documents"] > 0 and setting.steps > 0
    assert 0 < setting.report["learned_tokens"] <= setting.report["tokens"]
    assert setting.evaluation is not None


def learned_text(setting: Setting) -> str:
    documents = setting.documents
    ids = documents.ids_N[documents.learned_N.astype(bool)]
    return str(setting.tokenizer.decode(ids))


def test_json_is_learned_compactly_and_no_slot_as_an_empty_list(tiny_llama: Path) -> None:
    learned = learned_text(decided("json_extraction", tiny_llama, ("data.evaluate", None)))
    assert learned.count('[{"slot":"people","valueSpan":{"endIndex":8}}]<|im_end|>') == 8
    assert learned.count("[]<|im_end|>") == 1


def test_a_label_is_learned_as_its_text(tiny_llama: Path) -> None:
    assert learned_text(decided("classification_as_text", tiny_llama, ("data.evaluate", None))) == "card_arrival<|im_end|>" * 8


def test_the_chinese_recipe_leaves_an_empty_answer_out(tiny_llama: Path) -> None:
    [file] = decided("chinese", tiny_llama).report["files"]
    assert (file["good"], [row["reason"] for row in file["bad"]]) == (8, ["'output' is empty: there is nothing to learn"])


def test_qlora_is_lora_over_four_bits() -> None:
    run = config.load(RECIPES["qlora"]).run
    assert (run.method.name, run.model.quantize) == ("lora", "nf4")


def test_a_recipe_trains(tiny_llama: Path, tmp_path: Path) -> None:
    setting = decided("lora", tiny_llama, ("train.steps", 3), ("train.threads", 1), ("out", str(tmp_path / "run")))
    happened = list(loop.begin(setting, tell=lambda sentence: None))
    assert isinstance(happened[-1], events.Finished) and happened[-1].steps == 3
    assert any(isinstance(event, events.Evaluated) for event in happened)
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file() and (tmp_path / "run/best").is_dir()


@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not here")
@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("json_extraction", "restaurant8k_slots/train.json"),
        ("classification_as_text", "banking77/train.csv"),
        ("chinese", "alpaca_zh/train.json"),
    ],
)
def test_a_recipe_reads_the_public_data_that_it_names(name: str, train: str) -> None:
    from tunesmith.data.sources import load_samples

    data = config.load(RECIPES[name]).run.data
    samples, _ = load_samples(
        f"{DATA / train}#200", format=data.format, columns=data.columns, prompt=data.prompt, on_bad_row=data.on_bad_row
    )
    assert 195 <= len(samples) <= 200 and all(sample.messages[-1]["content"] for sample in samples)
