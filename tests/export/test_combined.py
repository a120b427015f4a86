from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.laws.test_switching import ADAPTERS, loaded, ready
from tunesmith.errors import UserError
from tunesmith.export.combined import combine
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import AdapterFile


@pytest.fixture
def files(tiny_llama: Path, tmp_path: Path) -> list[AdapterFile]:
    """A LoRA of rank 8 beside all layers, one of rank 2 beside some."""
    base = loaded(tiny_llama, "fp32")
    for seed, name in enumerate(("lora", "lora of some layers")):
        layout.write(tmp_path / str(seed), base.model, ready(base, ADAPTERS[name], seed), str(tiny_llama))
    return [layout.read(tmp_path / name) for name in "01"]


def test_one_lora_over_the_base_that_all_name(files: list[AdapterFile], tiny_llama: Path, tmp_path: Path) -> None:
    combined = combine([(files[0], 0.5), (files[1], -1.0)], "concat")
    assert (combined.base, combined.layers, combined.ranks, combined.notes) == (str(tiny_llama), 14, [8, 10], [])
    assert combined.apart < 1e-6
    combined.write(tmp_path / "both")
    again = layout.read(tmp_path / "both")
    assert again.about["base"]["layers"] == 2
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"):
        wanted = sum(
            weight * file.facts["scales"][path] * file.tensors[f"{path}.B"] @ file.tensors[f"{path}.A"]
            for file, weight in zip(files, (0.5, -1.0), strict=True)
            if path in file.facts["scales"]
        )
        torch.testing.assert_close(again.facts["scales"][path] * again.tensors[f"{path}.B"] @ again.tensors[f"{path}.A"], wanted)


def test_averaged_factors_are_told(files: list[AdapterFile]) -> None:
    combined = combine([(files[0], 1.0), (replace(files[0]), 1.0)], "linear")
    assert combined.ranks == [8] and combined.apart > 0.5
    assert combined.notes == [
        f"the factors were averaged: the update differs from the weighted sum by {combined.apart:.0%}; --how concat is exact"
    ]


def test_bases_that_are_not_one(files: list[AdapterFile]) -> None:
    with pytest.raises(UserError, match="only adapters of one base can be combined"):
        combine([(files[0], 1.0), (replace(files[1], base="other/model"), 1.0)], "concat")
    with pytest.raises(UserError, match="does not name its base; give it with --model"):
        combine([(replace(files[0], base=""), 1.0)], "concat")
