"""Law: a combination that cannot be is refused with exit 2, the reason and what to do instead, and leaves no run folder behind."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import runs
from tests.runs import own_cache  # noqa: F401
from tests.tiny_models import tiny
from tunesmith.cli import main

# words behind `tunesmith train` -> what stands in the answer: reason and alternative
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "full over nf4": (["--method", "full", "model.quantize=nf4"], ["NF4 codes have no gradient", "method.name=lora"]),
    "freeze over nf4": (["--method", "freeze", "model.quantize=nf4"], ["NF4 codes have no gradient", "model.quantize=null"]),
    "loftq over a base that is not rounded": (["--method", "lora", "method.init=loftq"], ["this base is not rounded", "method.name=qlora"]),
    "dora on an embedding": (
        ["--method", "dora", "method.targets=[embed_tokens]"],
        ["embed_tokens is an embedding", "method.trainable_tokens=[...]", "method.modules_to_save=[embed_tokens]"],
    ),
    "an unknown token": (
        ["--method", "lora", "method.trainable_tokens=[seldom]"],
        ["method.trainable_tokens: 'seldom' is no token of this model", "made of"],
    ),
    "an id beyond the embedding": (["--method", "lora", "method.trainable_tokens=[384]"], ["384: not among the 384 ids"]),
    "a module that there is not": (
        ["--method", "lora", "method.modules_to_save=[classifier]"],
        ["modules_to_save: no module classifier in this model", "lm_head"],
    ),
    "a module that is also a target": (
        ["--method", "lora", "method.modules_to_save=[q_proj]"],
        ["q_proj is also a target", "leave it out"],
    ),
    "a whole module in nf4": (
        ["--method", "qlora", "method.targets=[q]", "method.modules_to_save=[v_proj]"],
        ["v_proj is kept in NF4", "model.quantize=null"],
    ),
    "settings of another method": (["--method", "prompt", "method.rank=4"], ["method.rank: a setting of lora, dora, pissa, not of prompt"]),
    "a text that nothing begins from": (
        ["--method", "prompt", "method.init=vocabulary", "method.text=Sort."],
        ["method.text=Sort. changes nothing", "leave one of the two out"],
    ),
    "a target that there is not": (["--method", "lora", "method.targets=[fc1]"], ["no linear layer fc1", "roles: q k v o gate up down"]),
    "more singular vectors than there are": (["--method", "pissa", "method.rank=64"], ["more singular vectors than", "take 32 at most"]),
    "an odd rank of orthogonal factors": (
        ["--method", "lora", "method.init=orthogonal", "method.rank=3"],
        ["method.init=orthogonal needs an even rank, not 3"],
    ),
    "more blocks than there are": (["--method", "freeze", "method.layers=3"], ["method.layers=3, but the model has 2 blocks"]),
    "a pattern without a match": (["--method", "freeze", "method.pattern=q_proj"], ["matches no tensor's whole name", "(.*)"]),
    "more tokens than positions": (["--method", "prefix", "method.tokens=512"], ["leave no room", "lower method.tokens"]),
    "class weights without a head": (["--method", "lora", "task.class_weights=balanced"], ["is for a head", "task.name=classify or tag"]),
    "labels without a head": (["--method", "lora", "task.labels=[a,b]"], ["task.labels is for labels", "task.name=classify or tag"]),
    "labels that the data does not keep to": (
        ["--method", "lora", "task.name=classify", "task.labels=[one,two]"],
        ["label 'two three' is none of the 2 that are learned", "data.on_bad_row=skip"],
    ),
    **{
        f"{name} is not merged": (["--method", name, "--then", "merge"], [reason])
        for name, reason in [
            *((name, "serve the two together") for name in ("prompt", "ptuning", "prefix", "ptuning_v2", "adapter")),
            ("full", "already gives a whole model in DIR/model"),
        ]
    },
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def refused(words: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a run that may not begin."""
    capsys.readouterr()
    assert main(["train", *words, "--out", str(out), "train.steps=1", "train.threads=1"]) == 2
    assert not out.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("case", REFUSED)
def test_the_law(case: str, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = REFUSED[case]
    said = refused([*words, "--model", str(tiny_llama), "--data", str(rows)], tmp_path / "run", capsys)
    assert [each for each in expected if each not in said] == [], said


@pytest.mark.parametrize(
    ("name", "reason"),
    [("prefix", "every block must have attention with keys and values of its own"), ("adapter", "mamba")],
)
def test_a_model_that_the_method_finds_no_place_in(
    name: str, reason: str, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mamba"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tiny("mamba").save_pretrained(folder)
    said = refused(["--method", name, "--model", str(folder), "--data", str(rows)], tmp_path / "run", capsys)
    assert f"method {name}: " in said and reason in said


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    runs.finish(runs.settings(tiny_llama, rows, out, {"train.steps": 1}))
    return out


def test_an_adapter_of_another_base_by_its_shapes(
    adapter: Path, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "wider"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    said = refused(["--model", str(folder), "--data", str(rows), f"model.adapter={adapter}"], tmp_path / "run", capsys)
    assert "was made for another base model" in said and "made for (64, 128), the layer is (64, 256) (in, out)" in said


def test_an_adapter_of_another_base_by_its_values(
    adapter: Path, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_llama, folder)
    [file] = folder.glob("*.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    said = refused(["--model", str(folder), "--data", str(rows), f"model.adapter={adapter}"], tmp_path / "run", capsys)
    assert "was made for another base model" in said and "name the base that it was made for" in said


def test_an_adapter_of_another_method(
    adapter: Path, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_llama), "--data", str(rows), f"model.adapter={adapter}"]
    said = refused([*words, "--method", "prefix"], tmp_path / "run", capsys)
    assert "the method is lora of the adapter" in said and "leave method.name out" in said
    said = refused([*words, "method.rank=16"], tmp_path / "run", capsys)
    assert "method.rank is 4 of the adapter" in said and "leave the setting out" in said
    said = refused([*words, "method.init=gaussian"], tmp_path / "run", capsys)
    assert "method.init says how an adapter begins, and that of model.adapter has begun" in said
