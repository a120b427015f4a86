import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from tunesmith.export import folder


def written(path: Path, **values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": [7, 2, 9]}),
        ({"eos_token_id": [9, 7], "temperature": 0.6}, {"eos_token_id": [9, 7, 2], "temperature": 0.6}),
        ({"temperature": 0.6}, {"eos_token_id": [2, 7, 9], "temperature": 0.6}),
        (None, {"bos_token_id": 1, "eos_token_id": [2, 7, 9]}),
    ],
    ids=["one", "some", "none", "no file"],
)
def test_every_stop_is_named(before: dict[str, Any] | None, after: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path / "config.json", bos_token_id=1, eos_token_id=2)
    if before is not None:
        written(tmp_path / "generation_config.json", **before)
    folder.name_stops(tmp_path, {9, 7, 2})
    assert read(tmp_path / "generation_config.json") == after


def test_stops_that_are_named_already_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id":[9,2]}')
    folder.name_stops(tmp_path, {2, 9})
    assert path.read_text() == '{"eos_token_id":[9,2]}'


def test_both_versions_find_their_names(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny_llama / "config.json", tmp_path / "config.json")
    folder.name_both(tmp_path)
    found = read(tmp_path / "config.json")
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] and found["torch_dtype"] == found["dtype"]
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == AutoConfig.from_pretrained(tiny_llama).to_diff_dict()


def test_two_tensors_are_not_tied_by_a_config_inside_either(tmp_path: Path) -> None:
    written(tmp_path / "config.json", text_config={"tie_word_embeddings": True, "vocab_size": 3})
    folder.untie(tmp_path)
    expected = {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": False, "vocab_size": 3}}
    assert read(tmp_path / "config.json") == expected


def test_an_index_names_the_bytes_that_are_there(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "one.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros(2)}, tmp_path / "two.safetensors")
    index = {
        "metadata": {"total_size": 1, "by": "me"},
        "weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"},
    }
    path = written(tmp_path / "model.safetensors.index.json", **index)
    folder.right_index(tmp_path)
    assert read(path) == index | {"metadata": {"total_size": 60 + 14 + 8, "by": "me"}}
    path.write_text(text := json.dumps(read(path)))
    folder.right_index(tmp_path)
    assert path.read_text() == text, "a right one is left alone"
