"""Adapter folders: what is written, what is refused, and that everything wrong is said at once. `oracle/test_peft.py` has peft judge."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import lora, method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import LoRA as Settings


def made(name="llama", **settings):
    model = tiny(name)
    tuning = lora.build(model, Settings(**settings))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_()
    return model, tuning


@pytest.fixture
def folder(tmp_path):
    model, tuning = made(rank=4, targets=["q", "v"])
    layout.write(tmp_path / "adapter", model, tuning, "some/base")
    return tmp_path / "adapter"


def change(folder, **values):
    config = json.loads((folder / layout.CONFIG).read_text())
    (folder / layout.CONFIG).write_text(json.dumps(config | values))


def tensors(folder, edit):
    found = load_file(folder / layout.WEIGHTS)
    edit(found)
    save_file(found, folder / layout.WEIGHTS)


def problems(call):
    with pytest.raises(UserError) as caught:
        call()
    return list(caught.value.problems)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def test_what_is_written(folder):
    config = json.loads((folder / layout.CONFIG).read_text())
    assert {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias")} == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": False,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    assert config["base_model_name_or_path"] == layout.base_of(folder) == "some/base"
    assert config["rank_pattern"] == config["alpha_pattern"] == {} and config["fan_in_fan_out"] is False
    stored = load_file(folder / layout.WEIGHTS)
    assert len(stored) == 8 and {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert stored[f"{Q0}.lora_A.weight"].shape == (4, 64) and stored[f"{Q0}.lora_B.weight"].shape == (64, 4)
    assert layout.is_adapter(folder) and not layout.is_adapter(folder.parent)


def test_files_carry_no_times_and_no_chance(tmp_path):
    for name in ("a", "b"):
        model, tuning = made(rank=4)
        layout.write(tmp_path / name, model, tuning, "some/base")
    for file in (layout.CONFIG, layout.WEIGHTS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("settings", [{}, {"rank": 3, "alpha": 5}, {"rslora": True}, {"targets": ["o"], "dropout": 0.25}])
def test_round_trip(tmp_path, settings):
    model, tuning = made(**settings)
    layout.write(tmp_path, model, tuning, "")
    again = layout.fit(layout.read(tmp_path), tiny("llama"))
    assert list(again.adapter) == list(tuning.adapter) and list(again.parameters) == list(tuning.parameters)
    assert all(torch.equal(again.parameters[name], parameter) for name, parameter in tuning.parameters.items())
    for path, module in tuning.adapter.items():
        assert again.adapter[path].scale == pytest.approx(module.scale, rel=1e-12) and again.adapter[path].dropout == module.dropout
    assert method.misfits(again, method.state(tuning)) == []


def test_ranks_and_scales_that_differ_from_layer_to_layer(tmp_path):
    model, tuning = made(rank=4, targets=["q"])
    other = lora.build(model, Settings(rank=2, alpha=7, targets=["layers.1.mlp.up_proj"]))
    for parameter in other.parameters.values():
        parameter.data.normal_()
    tuning.adapter |= other.adapter
    layout.write(tmp_path, model, tuning, "")
    config = json.loads((tmp_path / layout.CONFIG).read_text())
    assert config["rank_pattern"] == {"model.layers.1.mlp.up_proj": 2} and config["alpha_pattern"] == {"model.layers.1.mlp.up_proj": 7}
    assert config["target_modules"] == sorted(tuning.adapter), "names alone would say too much"
    again = layout.fit(layout.read(tmp_path), model)
    assert {path: module.scale for path, module in again.adapter.items()} == {path: m.scale for path, m in tuning.adapter.items()}


def test_conv1d_is_marked(tmp_path):
    model, tuning = made("gpt2")
    layout.write(tmp_path, model, tuning, "")
    assert json.loads((tmp_path / layout.CONFIG).read_text())["fan_in_fan_out"] is True


def test_alpha_of_an_old_file_is_pefts_default(folder):
    config = json.loads((folder / layout.CONFIG).read_text())
    del config["lora_alpha"]
    (folder / layout.CONFIG).write_text(json.dumps(config))
    assert set(layout.read(folder).facts["scales"].values()) == {8 / 4}


def test_everything_that_is_not_plain_lora_is_refused_at_once(folder):
    change(folder, bias="all", modules_to_save=["lm_head"], lora_bias=True, init_lora_weights="pissa_niter_4")
    tensors(folder, lambda found: found.update({f"{Q0}.lora_magnitude_vector": torch.ones(64), f"{Q0}.lora_embedding_A": torch.ones(2)}))
    config, weights = folder / layout.CONFIG, folder / layout.WEIGHTS
    assert sorted(problems(lambda: layout.read(folder))) == sorted(
        [
            f"{config}: lora_bias=True is not served",
            f"{config}: bias='all' is not served",
            f"{weights}: modules_to_save names lm_head, but there is no tensor of it",
            f"{config}: init_lora_weights='pissa_niter_4' changes the base model too; "
            "let peft convert it to a plain LoRA and save it again",
            f"{weights}: tensor {Q0}.lora_embedding_A (2,) is not part of a plain LoRA",
            f"{weights}: tensor {Q0}.lora_magnitude_vector (64,) is not part of a plain LoRA",
        ]
    )
    change(folder, peft_type="IA3")
    assert problems(lambda: layout.read(folder))[0].startswith(f"{config}: peft_type='IA3' is not served")


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", None])
def test_ways_to_begin_that_leave_the_base_alone_are_served(folder, start):
    change(folder, init_lora_weights=start)
    assert len(layout.read(folder).facts["scales"]) == 4


def test_halves_and_ranks_that_do_not_meet(folder):
    def edit(found):
        del found[f"{Q0}.lora_A.weight"]
        del found[f"{Q0.replace('.0.', '.1.')}.lora_B.weight"]
        found[f"{Q0.replace('q_proj', 'v_proj')}.lora_B.weight"] = torch.ones(32, 5)

    tensors(folder, edit)
    path, weights = "model.layers.0.self_attn.q_proj", folder / layout.WEIGHTS
    assert sorted(problems(lambda: layout.read(folder))) == [
        f"{weights}: {path} has no lora_A",
        f"{weights}: {path.replace('q_proj', 'v_proj')} has rank 4 in lora_A and 5 in lora_B",
        f"{weights}: {path.replace('.0.', '.1.')} has no lora_B",
    ]


def test_a_folder_that_is_none(folder, tmp_path):
    assert problems(lambda: layout.read(tmp_path)) == [f"{tmp_path}: no adapter_config.json, so it is not an adapter folder"]
    (folder / layout.CONFIG).write_text("{")
    assert "not valid JSON" in problems(lambda: layout.read(folder))[0]
    (folder / layout.CONFIG).write_text("[]")
    assert problems(lambda: layout.base_of(folder)) == [f"{folder / layout.CONFIG}: not an adapter's settings"]


def test_weights_that_are_absent_cut_short_empty_or_pickled(folder):
    whole = (folder / layout.WEIGHTS).read_bytes()
    (folder / layout.WEIGHTS).write_bytes(whole[:-9])
    assert "not a whole safetensors file" in problems(lambda: layout.read(folder))[0]
    save_file({}, folder / layout.WEIGHTS)
    assert problems(lambda: layout.read(folder)) == [f"{folder / layout.WEIGHTS}: holds no tensors"]
    (folder / layout.WEIGHTS).rename(folder / "adapter_model.bin")
    assert problems(lambda: layout.read(folder)) == [
        f"{folder}: no adapter_model.safetensors (adapter_model.bin is a pickle and is not opened; save it as safetensors)"
    ]


def test_another_base_is_named_with_every_misfit(folder):
    found = problems(lambda: layout.fit(layout.read(folder), tiny("gpt2")))
    assert found[0] == f"{folder} was made for another base model (some/base):" and len(found) == 5
    assert found[1] == "  model.layers.0.self_attn.q_proj: no such layer in the model"
    tensors(folder, lambda all: all.update({f"{Q0}.lora_A.weight": torch.ones(4, 60)}))
    assert problems(lambda: layout.fit(layout.read(folder), tiny("llama")))[1:] == [
        "  model.layers.0.self_attn.q_proj: made for (60, 64), the layer is (64, 64) (in, out)"
    ]


def test_a_path_that_is_no_linear_layer(folder):
    def edit(found):
        for letter in "AB":
            found[f"base_model.model.model.norm.lora_{letter}.weight"] = torch.ones(1, 1)

    tensors(folder, edit)
    assert problems(lambda: layout.fit(layout.read(folder), tiny("llama")))[1:] == ["  model.norm: LlamaRMSNorm is no linear layer"]
