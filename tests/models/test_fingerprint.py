import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import CONFIGS, tiny
from tunesmith.models import fingerprint as prints
from tunesmith.models.fingerprint import difference, fingerprint
from tunesmith.models.load import quiet

Change = Callable[[torch.Tensor], torch.Tensor]


def saved(folder: Path, name: str, **settings: Any) -> Path:
    with quiet():
        tiny(name).save_pretrained(folder, **settings)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"), "llama")


def changed(folder: Path, target: Path, change: Change) -> dict[str, Any]:
    """The fingerprint of the same model with every tensor changed."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: change(tensor.float()).contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return fingerprint(target)


def rounded(kind: str) -> Change:
    quantized = getattr(gguf.GGMLQuantizationType, kind)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 2:
            return tensor  # norms stay whole in GGUF files
        return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), quantized), quantized))

    return change


def moved(share: float) -> Change:
    """As further training would: every value by a random part of the tensor's size."""
    generator = torch.Generator().manual_seed(0)
    return lambda t: t + share * t.std() * torch.randn(t.shape, generator=generator)


SAME: dict[str, Change] = {
    "fp32": lambda t: t,
    "bf16": lambda t: t.bfloat16(),
    "fp16": lambda t: t.half(),
    "Q8_0 as bf16": lambda t: rounded("Q8_0")(t).bfloat16(),
}


@pytest.mark.parametrize("how", SAME)
def test_the_same_weights_in_another_number_format_are_the_same(how: str, llama: Path, tmp_path: Path) -> None:
    ours, theirs = fingerprint(llama), changed(llama, tmp_path / "other", SAME[how])
    assert difference(ours, theirs) == difference(theirs, ours) == ""


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_another_fine_tune_is_another_base(share: float, llama: Path, tmp_path: Path) -> None:
    why = difference(fingerprint(llama), changed(llama, tmp_path / "other", moved(share)))
    assert why.startswith("the weights differ by ") and why.endswith("another fine-tune of the same model, or the same one rounded harder")


def test_a_coarser_rounding_is_another_base(llama: Path, tmp_path: Path) -> None:
    assert "rounded harder" in difference(fingerprint(llama), changed(llama, tmp_path / "other", rounded("Q4_0")))


def test_a_model_of_the_same_shape_trained_from_scratch(llama: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    fresh = changed(llama, tmp_path / "other", lambda t: torch.randn(t.shape, generator=generator) * t.std() if t.ndim > 1 else t)
    why = difference(fingerprint(llama), fresh)
    assert why.startswith("the weights differ by 1") and "fine-tune" not in why


def test_one_trained_block_is_enough(llama: Path, tmp_path: Path) -> None:
    """Freeze tuning of the last block alone."""
    other = shutil.copytree(llama, tmp_path / "other")
    tensors = load_file(llama / "model.safetensors")
    shift = moved(0.05)
    save_file({n: shift(t) if ".layers.1." in n else t for n, t in tensors.items()}, other / "model.safetensors")
    assert "layers.1." in difference(fingerprint(llama), fingerprint(other))


def test_for_a_resume_only_equal_values_are_equal(llama: Path, tmp_path: Path) -> None:
    ours = fingerprint(llama)
    assert difference(ours, fingerprint(llama), limit=0) == ""
    assert difference(ours, changed(llama, tmp_path / "bf16", SAME["bf16"]), limit=0).startswith("the weights differ by 0.")


def test_shapes_are_said_first(llama: Path) -> None:
    ours = fingerprint(llama)
    assert difference(ours, ours | {"hidden_size": 128}) == "64 channels there, 128 here"
    assert difference(ours, ours | {"layers": 30}) == "2 blocks there, 30 here"
    assert difference(ours, ours | {"values": {"h.0.c_attn.weight": [1.0] * prints.VALUES}}).startswith("its checkpoint has other tensors")
    assert difference(ours, ours | {"vocabulary": 100}) == "", "tokens that were added leave the weights as they are"


def test_rows_that_were_added_do_not_count(tmp_path: Path) -> None:
    """A vocabulary beyond the last sampled row, and one larger still."""
    table = torch.randn(6000, 4)
    for name, rows in (("short", 5000), ("long", 6000)):
        saved(tmp_path / name, "llama")
        tensors = load_file(tmp_path / name / "model.safetensors")
        save_file(tensors | {"model.embed_tokens.weight": table[:rows].contiguous()}, tmp_path / name / "model.safetensors")
    assert difference(fingerprint(tmp_path / "short"), fingerprint(tmp_path / "long"), limit=0) == ""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_gives_values_from_both_ends_and_beside(name: str, tmp_path: Path) -> None:
    found = fingerprint(saved(tmp_path, name))
    values = found["values"]
    assert all(len(each) == prints.VALUES for each in values.values()) and json.loads(json.dumps(found)) == found
    assert any(".0." in key for key in values) and any(".1." in key for key in values)
    assert sum("." not in key.removesuffix(".weight") for key in values) == 2, "an embedding and the final norm"
    assert 5 <= len(values) <= 8 and len({tuple(each) for each in values.values()}) == len(values)


def test_the_largest_table_is_the_embedding() -> None:
    shapes = {"wpe.weight": (64, 8), "wte.weight": (384, 8), "h.0.fc.weight": (8, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    assert list(prints._chosen(shapes, 1)) == ["h.0.fc.weight", "wte.weight", "ln_f.weight"]


def test_shards_and_a_missing_prefix_change_nothing(llama: Path, tmp_path: Path) -> None:
    whole = fingerprint(llama)
    assert fingerprint(saved(tmp_path / "shards", "llama", max_shard_size="50KB")) == whole
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    bare = shutil.copytree(llama, tmp_path / "bare")
    tensors = load_file(llama / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors")
    assert difference(whole, fingerprint(bare), limit=0) == ""


def test_only_slices_are_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prints.safe_open

    class Slices:
        def __init__(self, *given: Any, **settings: Any):
            self.file = real(*given, **settings)

        def get_slice(self, name: str) -> Any:
            return self.file.get_slice(name)

    monkeypatch.setattr(prints, "safe_open", Slices)
    assert fingerprint(llama)["values"]


def test_a_checkpoint_without_safetensors_gives_its_shape_alone(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    found = fingerprint(tmp_path)
    assert found["values"] == {} and found["hidden_size"] == 64
    assert difference(fingerprint(llama), found) == ""
