"""The layout of LoRA's kin: lengths of rows, trained rows, whole modules. peft itself judges in `oracle/test_peft_dora.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import DoRA, LoRA
from tunesmith.methods.tuning import Start

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
EMBED = "base_model.model.model.embed_tokens"


def written(folder: Path, settings: Any, name: str = "llama") -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model = tiny(name)
    tuning = method.build(model, settings, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    layout.write(folder, model, tuning, "some/base")
    return json.loads((folder / layout.CONFIG).read_text()), load_file(folder / layout.WEIGHTS)


def problems(call: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


def change(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    (folder / layout.CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / layout.WEIGHTS)


def test_what_dora_writes(tmp_path: Path) -> None:
    config, tensors = written(tmp_path, DoRA(rank=4, targets=["q"]))
    assert config["use_dora"] is True and config["modules_to_save"] is None and "trainable_token_indices" not in config
    assert {key.removeprefix(Q0): tuple(tensor.shape) for key, tensor in tensors.items() if key.startswith(Q0)} == {
        ".lora_A.weight": (4, 64),
        ".lora_B.weight": (64, 4),
        ".lora_magnitude_vector.weight": (64,),
    }


def test_lengths_as_older_versions_wrote_them(tmp_path: Path) -> None:
    config, tensors = written(tmp_path, DoRA(targets=["q"]))
    old = {key.replace("magnitude_vector.weight", "magnitude_vector"): tensor for key, tensor in tensors.items()}
    change(tmp_path, config, old)
    assert torch.equal(layout.read(tmp_path).tensors["model.layers.0.self_attn.q_proj.magnitude"], old[f"{Q0}.lora_magnitude_vector"])


def test_what_is_missing_or_too_much(tmp_path: Path) -> None:
    config, tensors = written(tmp_path, DoRA(targets=["q"]))
    weights = tmp_path / layout.WEIGHTS
    change(tmp_path, config, {key: tensor for key, tensor in tensors.items() if key != f"{Q0}.lora_magnitude_vector.weight"})
    assert problems(lambda: layout.read(tmp_path)) == [f"{weights}: model.layers.0.self_attn.q_proj has no lora_magnitude_vector"]
    change(tmp_path, config | {"use_dora": False}, tensors)
    assert len(problems(lambda: layout.read(tmp_path))) == 2, "lengths that would not be used"


def test_tied_models(tmp_path: Path) -> None:
    config, tensors = written(tmp_path / "rows", LoRA(targets=["q"], trainable_tokens=[7, 5]), "llama_tied")
    assert config["trainable_token_indices"] == [7, 5] and "ensure_weight_tying" not in config
    assert [key for key in tensors if "lora_" not in key] == [f"{EMBED}.token_adapter.trainable_tokens_delta"]
    assert torch.equal(tensors[f"{EMBED}.token_adapter.trainable_tokens_delta"], tiny("llama_tied").lm_head.weight[[7, 5]])
    config, tensors = written(tmp_path / "whole", LoRA(targets=["q"], modules_to_save=["lm_head"]), "llama_tied")
    assert config["modules_to_save"] == ["embed_tokens"] and config["ensure_weight_tying"] is True
    assert torch.equal(tensors[f"{EMBED}.weight"], tensors["base_model.model.lm_head.weight"]), "peft wants both"


def test_names_of_modules_take_no_others_with_them(tmp_path: Path) -> None:
    """peft takes every path that ends with the letters: `norm` would mean all norms."""
    config, tensors = written(tmp_path, LoRA(targets=["q"], modules_to_save=["model.norm"]))
    assert config["modules_to_save"] == ["model.norm"] and "base_model.model.model.norm.weight" in tensors
    assert list(layout.fit(layout.read(tmp_path), tiny("llama")).adapter)[-1] == "model.norm"


def test_rows_and_modules_that_do_not_fit(tmp_path: Path) -> None:
    config, tensors = written(tmp_path, LoRA(targets=["q"], trainable_tokens=[5, 95], modules_to_save=["lm_head"]))
    key = f"{EMBED}.token_adapter.trainable_tokens_delta"
    change(tmp_path, config | {"trainable_token_indices": [5]}, tensors)
    assert problems(lambda: layout.read(tmp_path)) == [
        f"{tmp_path / layout.WEIGHTS}: tensor {key} (2, 64) does not fit trainable_token_indices=[5]"
    ]
    change(tmp_path, config, {name: tensor for name, tensor in tensors.items() if name != key})
    assert "there are no rows for them" in problems(lambda: layout.read(tmp_path))[0]
    change(tmp_path, config | {"trainable_token_indices": [5, 96]}, tensors | {"base_model.model.lm_head.weight": torch.ones(97, 64)})
    assert problems(lambda: layout.fit(layout.read(tmp_path), tiny("llama")))[1:] == [
        "  model.embed_tokens: row 96 of 64 channels, the layer has 96 rows of 64",
        "  lm_head: weight (97, 64) in the file, weight (96, 64) in the model",
    ]


def test_a_base_layer_in_the_file_must_be_the_models(tmp_path: Path) -> None:
    """What peft adds where an update stands at the head."""
    config, tensors = written(tmp_path, LoRA(targets=["q"]))
    at_head = {"base_model.model.lm_head.lora_A.weight": torch.ones(8, 64), "base_model.model.lm_head.lora_B.weight": torch.ones(96, 8)}
    own = tiny("llama").lm_head.weight.clone()
    change(tmp_path, config, tensors | at_head | {"base_model.model.lm_head.base_layer.weight": own})
    assert "lm_head" in layout.fit(layout.read(tmp_path), tiny("llama")).adapter
    change(tmp_path, config, tensors | at_head | {"base_model.model.lm_head.base_layer.weight": own * 1.5})
    assert problems(lambda: layout.fit(layout.read(tmp_path), tiny("llama")))[1:] == [
        "  lm_head: the file holds a weight (96, 64) that is not this model's (96, 64)"
    ]
