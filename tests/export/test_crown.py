import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunesmith.export.crown import crown
from tunesmith.models import load as loading
from tunesmith.models import score
from tunesmith.train import weights


def test_a_head_goes_into_a_checkpoint_of_several_files(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_SHARD_BYTES", 100_000)
    (out := tmp_path / "out").mkdir()
    base = loading.load(tiny_llama, dtype=torch.float32)
    weights.write_model(out, base.model, tiny_llama)
    for file in out.glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt", "by": "me"})
    head = score.make(base.model, "tag", ["O", "B-X", "I-X"])
    head.begin(0)
    crown(out, loading.skeleton(loading.load_config(tiny_llama)), head)  # a skeleton is enough
    index = json.loads((out / "model.safetensors.index.json").read_text())
    held = {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert held == index["weight_map"] and "lm_head.weight" not in held and len(set(held.values())) > 2
    assert {"score.weight", "score.bias"} <= set(held)
    every = [tensor for file in out.glob("*.safetensors") for tensor in load_file(file).values()]
    assert index["metadata"]["total_size"] == sum(tensor.numel() * tensor.element_size() for tensor in every)
    for file in out.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            assert content.metadata() == {"format": "pt", "by": "me"}
    found = score.read(out)
    assert found is not None and torch.equal(found.weight, head.weight) and found.labels == head.labels
    again = loading.load(out, dtype=torch.float32, own_head=False).model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in base.model.state_dict().items() if name != "lm_head.weight")
