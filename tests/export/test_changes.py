from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import write_byte_tokenizer
from tests.laws.test_switching import ADAPTERS, loaded, ready
from tunesmith.export import changes
from tunesmith.methods.parts import extras
from tunesmith.models import load as loading
from tunesmith.models.matrix import matrix


@pytest.mark.parametrize("name", ["lora", "pissa", "dora"])
def test_what_an_adapter_changed_of_each_matrix(name: str, tiny_llama: Path) -> None:
    base = loaded(tiny_llama, "fp32")
    tuning = ready(base, ADAPTERS[name], 3)
    tuned: Any = SimpleNamespace(tuning=tuning, model=base.model)
    found, lost = changes.of_adapter(tuned, tiny_llama, base.model, 64, seed=0)
    assert lost == {} and [change.path for change in found] == list(tuning.adapter)
    for change in found:
        weight = matrix(tiny_llama, change.path, base.model)
        wanted = tuning.adapter[change.path].folded(weight) - weight  # type: ignore[operator]
        torch.testing.assert_close(change.b_OR @ change.a_RI, wanted, rtol=1e-3, atol=1e-4)
        assert change.energy == pytest.approx(wanted.square().sum().item(), rel=1e-3) and change.weight == pytest.approx(
            weight.norm().item()
        )


def test_what_stands_beside_updates_is_told_by_its_size(tiny_llama: Path) -> None:
    base = loaded(tiny_llama, "fp32")
    weight = base.model.get_input_embeddings().weight.detach()
    rows, norm = extras.TrainedRows([5, 9], 64), extras.TrainedCopy(base.model.model.norm)
    with torch.no_grad():
        rows.values.copy_(weight[[5, 9]] * 1.5)
        norm.weight.copy_(base.model.model.norm.weight * 3)
    tuned: Any = SimpleNamespace(tuning=SimpleNamespace(adapter={"model.embed_tokens": rows, "model.norm": norm}), model=base.model)
    assert changes.of_adapter(tuned, tiny_llama, base.model, 4, seed=0) == (
        [],
        {"model.embed_tokens (2 rows)": pytest.approx(0.5), "model.norm.weight": pytest.approx(2.0)},
    )


def test_what_a_whole_model_changed_is_read_from_both_checkpoints(tiny_llama: Path, tmp_path: Path) -> None:
    """Another number of files there; what did not change is not named."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    update = torch.outer(torch.arange(64.0), torch.ones(64)) * 0.01
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight += update
        model.lm_head.weight *= 1.25
    model.save_pretrained(tmp_path / "model", max_shard_size="250KB")
    write_byte_tokenizer(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1 and load_file(tiny_llama / "model.safetensors")
    tuned: Any = SimpleNamespace(located=SimpleNamespace(folder=tmp_path / "model"), model=model)
    bare = loading.skeleton(loading.load_config(tiny_llama))
    [change], lost = changes.of_model(tuned, tiny_llama, bare, 2, seed=0)
    assert change.path == "model.layers.1.self_attn.q_proj" and lost == {"lm_head.weight": pytest.approx(0.25)}
    torch.testing.assert_close(change.b_OR @ change.a_RI, update, rtol=1e-4, atol=1e-4)
    assert change.lost(1) < 1e-3
