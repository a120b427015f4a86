from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.export.gguf.made_models import CONFIGS, made_model
from tunesmith.errors import UserError
from tunesmith.export.gguf.names import family_of, head_size
from tunesmith.export.gguf.weights import changes, plan, turned, values
from tunesmith.models.load import load_config


def test_channels_that_rotate_together_stand_side_by_side() -> None:
    """Queries turned, rotated by neighbours, are the queries rotated by halves, turned."""
    heads, size = 2, 8
    q_O = torch.randn(heads * size, generator=torch.Generator().manual_seed(0))
    angle_P = torch.arange(1.0, size // 2 + 1)
    by_halves = torch.empty_like(q_O).reshape(heads, size)
    for head, row in enumerate(q_O.reshape(heads, size)):
        a, b = row[: size // 2], row[size // 2 :]
        by_halves[head] = torch.cat([a * angle_P.cos() - b * angle_P.sin(), b * angle_P.cos() + a * angle_P.sin()])
    pairs = turned(q_O, heads).reshape(heads, size // 2, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    neighbours = torch.stack([a * angle_P.cos() - b * angle_P.sin(), b * angle_P.cos() + a * angle_P.sin()], -1)
    torch.testing.assert_close(neighbours.reshape(-1), turned(by_halves.reshape(-1), heads))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_has_its_place(name: str, tmp_path: Path) -> None:
    folder = made_model(name, tmp_path / "model")
    config = load_config(folder)
    planned = plan(folder, config, family_of(config), head_size(config))
    parts = [part for each in planned for part in each.parts]
    assert sorted(parts) == sorted(load_file(folder / "model.safetensors"))
    assert len({each.name for each in planned}) == len(planned)
    for each, made in values(planned, folder, changes(config, family_of(config))):
        tensors = list(made)
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
        assert (len(tensors), *tensors[0].shape) == each.shape if len(tensors) > 1 else tensors[0].shape == each.shape


def test_experts_are_stacked_in_order(tmp_path: Path) -> None:
    folder = made_model("mixtral", tmp_path / "model")
    config = load_config(folder)
    planned = {each.name: each for each in plan(folder, config, family_of(config), head_size(config))}
    stack = planned["blk.1.ffn_down_exps.weight"]
    assert stack.shape == (4, 64, 96)
    assert [int(part.split(".experts.")[1][0]) for part in stack.parts] == [0, 1, 2, 3]


def test_tensors_without_a_place_are_named_at_once(tmp_path: Path) -> None:
    folder = made_model("qwen3", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"model.layers.0.self_attn.q_proj.bias_scale": torch.ones(3), "model.layers.1.mlp.extra.weight": torch.ones(3)}
    save_file(tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}, folder / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(folder)
    with pytest.raises(UserError) as error:
        plan(folder, config, family_of(config), head_size(config))
    assert len(error.value.problems) == 2 and "llama.cpp's qwen3 has no such tensor" in str(error.value)
