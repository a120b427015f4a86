from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.gguf.made_models import made_model
from tunesmith.errors import UserError
from tunesmith.export.gguf.lora_file import write_lora
from tunesmith.export.gguf.weights import turned
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import DoRA, LoRA, Prefix
from tunesmith.models import load as loading
from tunesmith.models.gguf_header import read_header


def adapter_of(folder: Path, out: Path, settings: Any, change: Any = None) -> Path:
    model = loading.load(folder, dtype=torch.float32, device="cpu").model
    tuning = method.build(model, settings, quantized=False)
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.1)
    if change:
        change(tuning)
    layout.write(out, model, tuning, str(folder))
    return out


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_model("llama_tied", tmp_path_factory.mktemp("lora") / "model")


def read(file: Path) -> dict[str, np.ndarray]:
    data = file.read_bytes()
    return {
        tensor.name: np.frombuffer(data, np.float32, int(np.prod(tensor.shape)), tensor.offset).reshape(tensor.shape)
        for tensor in read_header(file).tensors
    }


def test_the_file_of_a_lora(llama: Path, tmp_path: Path) -> None:
    def scales(tuning: Any) -> None:
        tuning.adapter["model.layers.1.self_attn.q_proj"].scale = 6.0

    adapter = adapter_of(llama, tmp_path / "adapter", LoRA(rank=4, alpha=6.0, targets=["q_proj", "v_proj"]), scales)
    written = write_lora(adapter, llama, tmp_path / "adapter.gguf")
    metadata = read_header(written.file).metadata
    said = (metadata["general.type"], metadata["general.architecture"], metadata["adapter.type"], metadata["adapter.lora.alpha"])
    assert said == ("adapter", "llama", "lora", 6.0)
    tensors, file = read(written.file), layout.read(adapter)
    assert len(tensors) == written.tensors == 12
    for layer, factor in ((0, 1.0), (1, 4.0)):  # a scale of 6.0 where the file's alpha makes 1.5
        path = f"model.layers.{layer}.self_attn"
        assert np.array_equal(tensors[f"blk.{layer}.attn_q.weight.lora_a"], file.tensors[f"{path}.q_proj.A"].numpy())
        assert np.array_equal(tensors[f"blk.{layer}.attn_q.weight.lora_b"], turned(file.tensors[f"{path}.q_proj.B"] * factor, 4).numpy())
        assert np.array_equal(tensors[f"blk.{layer}.attn_v.weight.lora_b"], file.tensors[f"{path}.v_proj.B"].numpy())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (DoRA(rank=2), "DoRA at .* cannot be in a LoRA file"),
        (LoRA(rank=2, trainable_tokens=[5, 6]), "TrainedRows.* cannot be in a LoRA file"),
        (LoRA(rank=2, modules_to_save=["model.norm"]), "cannot be in a LoRA file"),
        (Prefix(tokens=2), "llama.cpp takes LoRA adapters alone, and this is prefix; serve it with `tunesmith serve`.*--as lora"),
    ],
)
def test_what_is_more_than_a_lora(settings: Any, said: str, llama: Path, tmp_path: Path) -> None:
    adapter = adapter_of(llama, tmp_path / "adapter", settings)
    with pytest.raises(UserError, match=said) as error:
        write_lora(adapter, llama, tmp_path / "adapter.gguf")
    assert "tunesmith" in str(error.value) and not (tmp_path / "adapter.gguf").exists()
