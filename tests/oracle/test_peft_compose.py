"""peft's add_weighted_adapter as the judge: its "cat" is our concat, its "linear" our linear; what we write it opens."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from peft import PeftModel

from tests.tiny_models import some_ids, tiny
from tunesmith.methods import lora, method
from tunesmith.methods.layouts import compose, layout
from tunesmith.methods.settings import LoRA

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
IDS_BT = some_ids(24).view(2, 12)
FAMILIES = ["llama", "gpt2"]  # the second keeps its matrices transposed


def adapter(folder: Path, family: str, seed: int, **settings: Any) -> Path:
    model = tiny(family)
    tuning = lora.build(model, LoRA(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    layout.write(folder, model, tuning, "some/base")
    return folder


def theirs(family: str, folders: list[Path], weights: list[float], kind: str) -> torch.Tensor:
    model = PeftModel.from_pretrained(tiny(family), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    model.add_weighted_adapter([str(i) for i in range(len(folders))], weights, "combined", combination_type=kind)
    model.set_adapter("combined")
    with torch.no_grad():
        return model(IDS_BT).logits


def ours(family: str, folders: list[Path], weights: list[float], how: str, target: Path) -> torch.Tensor:
    """Through a folder, as the verb does."""
    model = tiny(family)
    combined = compose.HOW[how]([(layout.read(folder), weight) for folder, weight in zip(folders, weights, strict=True)])
    layout.write(target, model, layout.fit(combined, model), combined.base)
    tuning = layout.fit(layout.read(target), model)
    method.place(model, tuning)
    with torch.no_grad():
        return model(IDS_BT).logits


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, -0.5]], ids=str)
@pytest.mark.parametrize("kind", ["cat", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_combined_adapters_are_those_of_peft(family: str, kind: str, weights: list[float], tmp_path: Path) -> None:
    folders = [adapter(tmp_path / "a", family, 1, rank=4), adapter(tmp_path / "b", family, 2, rank=4, alpha=3.0)]
    found = ours(family, folders, weights, {"cat": "concat", "linear": "linear"}[kind], tmp_path / "c")
    wanted = theirs(family, folders, weights, kind)
    assert relative(found, wanted) < 1e-5 < 1e-3 < relative(wanted, tiny(family)(IDS_BT).logits)


def test_different_ranks_and_layers_are_one_after_the_other(tmp_path: Path) -> None:
    folders = [
        adapter(tmp_path / "a", "llama", 1, rank=2, targets=["q", "down"]),
        adapter(tmp_path / "b", "llama", 2, rank=5, targets=["q"]),
    ]
    found = ours("llama", folders, [0.6, 1.5], "concat", tmp_path / "c")
    assert relative(found, theirs("llama", folders, [0.6, 1.5], "cat")) < 1e-5
    config = json.loads((tmp_path / "c/adapter_config.json").read_text())
    assert config["r"] == 7 and set(config["rank_pattern"].values()) == {2} and config["target_modules"] == ["down_proj", "q_proj"]
    model = PeftModel.from_pretrained(tiny("llama"), tmp_path / "c")
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, found) < 1e-5
