"""Every way in which a folder is not a usable model has its own sentence."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from tunesmith.models.folder import check_folder, check_safetensors


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")


def test_a_good_folder_has_no_problems(tiny_llama: Path) -> None:
    assert check_folder(tiny_llama) == []


def test_pickles_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    problems = check_folder(model)
    assert "pytorch_model.bin" in problems[0] and "can run any program" in problems[0]
    assert "save_pretrained" in problems[1]


def test_missing_shards_are_listed_and_paths_outside_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00003.safetensors")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=True))}), encoding="utf-8")
    (problem,) = check_folder(model)
    assert "2 of 3" in problem and names[1] in problem and names[2] in problem and names[0] not in problem
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}), encoding="utf-8")
    (problem,) = check_folder(model)
    assert "../other.safetensors" in problem


def test_code_that_comes_with_a_model_is_refused(model: Path) -> None:
    edit(model, model_type="newton", auto_map={"AutoModelForCausalLM": "someone/else--modeling_newton.NewtonForCausalLM"})
    (problem,) = check_folder(model)
    assert "modeling_newton.py" in problem and "refused" in problem
    # a class of transformers' own needs none of it
    edit(model, model_type="llama")
    assert check_folder(model) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "T5ForConditionalGeneration is not a causal language model",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "no head for the next token"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "no head for the next token"),
        ({"model_type": "newton"}, "no class for model_type 'newton'"),
        ({"model_type": None}, "no model_type"),
    ],
)
def test_other_kinds_of_models(model: Path, values: dict[str, object], said: str) -> None:
    edit(model, **values)
    (problem,) = check_folder(model)
    assert said in problem and str(model / "config.json") in problem


def test_all_problems_at_once(model: Path) -> None:
    edit(model, architectures=["LlamaForSequenceClassification"])
    (model / "model.safetensors").unlink()
    for path in [*model.glob("tokenizer*"), *model.glob("special*")]:
        path.unlink()
    problems = check_folder(model)
    assert len(problems) == 3
    assert "no weights" in problems[1] and "no tokenizer" in problems[2]


def test_folders_without_config(tmp_path: Path) -> None:
    assert "not a model" in check_folder(tmp_path)[0]
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert str(tmp_path / "a.gguf") in check_folder(tmp_path)[0]
    (tmp_path / "run.yaml").write_text("", encoding="utf-8")
    assert f"model.adapter={tmp_path}" in check_folder(tmp_path)[0]
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "an adapter, not a whole model" in check_folder(tmp_path)[0]


def test_broken_config(model: Path) -> None:
    (model / "config.json").write_text("{", encoding="utf-8")
    (problem,) = check_folder(model)
    assert "not valid JSON" in problem


def test_files_cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    assert check_safetensors(weights) == []
    weights.write_bytes(whole[:-1])
    assert f"should be {len(whole):,}" in check_safetensors(weights)[0]
    weights.write_bytes(whole[:100])
    assert "cut short" in check_safetensors(weights)[0]
    weights.write_bytes(struct.pack("<Q", 4) + b"{..}")
    assert "head is damaged" in check_safetensors(weights)[0]
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in check_safetensors(weights)[0]
    weights.write_bytes(b"")
    assert "cut short" in check_safetensors(weights)[0]
