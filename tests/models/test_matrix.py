import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.models.matrix import matrix, name_in, tensor_files


def test_a_matrix_is_that_of_the_checkpoint_in_fp32(tmp_path: Path) -> None:
    model = tiny("llama").bfloat16()
    model.save_pretrained(tmp_path)
    path = "model.layers.1.mlp.down_proj"
    found = matrix(tmp_path, path, model)
    assert found.dtype == torch.float32 and torch.equal(found, model.get_submodule(path).weight.float())


def test_what_a_checkpoint_keeps_transposed_is_turned(tmp_path: Path) -> None:
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    found = matrix(tmp_path, "transformer.h.0.attn.c_attn", model)
    assert found.shape == (192, 64) and torch.equal(found, model.transformer.h[0].attn.c_attn.weight.T)


def test_shards_and_names_without_the_base_models_prefix(tmp_path: Path) -> None:
    save_file({"h.0.weight": torch.ones(2, 3)}, tmp_path / "b.safetensors")
    save_file({"wte.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    index = {"weight_map": {"h.0.weight": "b.safetensors", "wte.weight": "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = tensor_files(tmp_path)
    assert {name: path.name for name, path in files.items()} == index["weight_map"]
    assert name_in(files, "transformer.h.0", "transformer") == "h.0.weight" and name_in(files, "h.1", "transformer") is None


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        tensor_files(tmp_path)
    tiny("mixtral").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no matrix of its own for model.layers.0.mlp.made_up"):
        matrix(tmp_path, "model.layers.0.mlp.made_up", tiny("mixtral"))
