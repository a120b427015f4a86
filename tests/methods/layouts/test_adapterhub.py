"""AdapterHub's folders: what is written, read back, and refused with every reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import adapter
from tunesmith.methods.layouts import adapterhub, layout, lora
from tunesmith.methods.settings import Adapter
from tunesmith.models import slots

IDS = some_ids(9)[None]


def written(folder: Path, name: str = "llama", **settings: Any) -> tuple[Any, Any]:
    """A folder with random values; the model without them in place, and the tuning."""
    model = tiny(name)
    tuning = adapter.build(model, Adapter(**settings))
    torch.manual_seed(1)
    for parameter in tuning.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    layout.write(folder, model, tuning, "made/up")
    return model, tuning


def changed(folder: Path, **values: Any) -> None:
    """Put other values into the inner config; a value of the outer one by an underscore in front."""
    content = json.loads((folder / layout.CONFIG).read_text())
    for key, value in values.items():
        if key.startswith("_"):
            content.pop(key[1:]) if value is None else content.update({key[1:]: value})
        else:
            content["config"][key] = value
    (folder / layout.CONFIG).write_text(json.dumps(content))


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "gemma3", "lfm2"])
def test_what_is_written_is_read_back(name, variant, tmp_path):
    model, tuning = written(tmp_path, name, variant=variant, width=5, activation="tanh", scale=1.5, dropout=0.25)
    file = layout.read(tmp_path)
    again = layout.fit(file, model)
    assert list(again.parameters) == list(tuning.parameters) and again.layout == "adapterhub"
    assert all(torch.equal(again.parameters[key], value) for key, value in tuning.parameters.items())
    for key, module in tuning.adapter.items():
        other: Any = again.adapter[key]
        for what in ("activation", "scale", "dropout", "reads", "adds"):
            assert getattr(other, what) == getattr(module, what)
    assert file.base == layout.base_of(tmp_path) == "made/up"
    assert layout.settings(file, model) == {"name": "adapter", "variant": variant, "width": 5, "activation": "tanh", "scale": 1.5}
    Adapter(**layout.settings(file, model))  # they are settings


def test_the_files_are_those_that_adapterhub_looks_for(tmp_path):
    written(tmp_path, variant="houlsby", width=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    tensors = load_file(tmp_path / "adapter.safetensors")
    first = "model.layers.0.attention_adapters.adapters.tunesmith"
    assert {key: tuple(value.shape) for key, value in tensors.items() if key.startswith(first)} == {
        f"{first}.adapter_down.0.weight": (5, 64),
        f"{first}.adapter_down.0.bias": (5,),
        f"{first}.adapter_up.weight": (64, 5),
        f"{first}.adapter_up.bias": (64,),
    }
    assert len(tensors) == 16 and "model.layers.1.output_adapters.adapters.tunesmith.adapter_up.bias" in tensors
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {key: content[key] for key in ("name", "model_name", "model_type", "hidden_size", "model_class")} == {
        "name": "tunesmith", "model_name": "made/up", "model_type": "llama", "hidden_size": 64, "model_class": "LlamaForCausalLM",
    }  # fmt: skip
    inner = content["config"]
    assert (inner["mh_adapter"], inner["output_adapter"], inner["is_parallel"], inner["original_ln_before"]) == (True, True, False, False)
    assert inner["non_linearity"] == "swish" and "architecture" not in inner


@pytest.mark.parametrize(("channels", "width"), [(100, 3), (64, 5), (2048, 128), (4096, 1365), (960, 7), (64, 64), (64, 100), (3072, 1)])
def test_their_rule_comes_to_the_same_width(channels, width):
    assert int(channels // adapterhub._factor(channels, width)) == width


def test_adapters_of_different_widths_keep_them(tmp_path):
    model, _ = written(tmp_path, width=6)
    tensors = load_file(tmp_path / adapterhub.WEIGHTS)
    block = "model.layers.1.output_adapters.adapters.tunesmith"
    tensors[f"{block}.adapter_down.0.weight"], tensors[f"{block}.adapter_down.0.bias"] = torch.ones(3, 64), torch.ones(3)
    tensors[f"{block}.adapter_up.weight"] = torch.ones(64, 3)
    save_file(tensors, tmp_path / adapterhub.WEIGHTS)
    again = layout.fit(layout.read(tmp_path), model)
    assert [parameter.shape[0] for name, parameter in again.parameters.items() if name.endswith(".down")] == [6, 3]
    factor = adapterhub.write(model, again, "")[0]["config"]["reduction_factor"]
    assert [int(64 // factor[key]) for key in ("0", "1")] == [6, 3]


def test_which_folders_are_of_this_kind(tmp_path):
    written(tmp_path)
    config = json.loads((tmp_path / layout.CONFIG).read_text())
    assert adapterhub.reads(config) and not lora.reads(config)
    assert not adapterhub.reads(config | {"peft_type": "LORA"}) and not adapterhub.reads({"config": {"architecture": "lora", "r": 8}})
    assert not adapterhub.reads({"config": None}) and not adapterhub.reads({})


@pytest.mark.parametrize(("said", "meant"), [("gelu", "gelu_new"), ("gelu_orig", "gelu"), ("swish", "silu"), ("relu", "relu")])
def test_names_of_activations_in_files_that_tell_no_version(said, meant, tmp_path):
    written(tmp_path)
    changed(tmp_path, non_linearity=said, _version=None)
    assert layout.read(tmp_path).facts["activation"] == meant
    if said != "gelu_orig":
        changed(tmp_path, _version="adapters.1.3.0")
        assert layout.read(tmp_path).facts["activation"] == {"swish": "silu"}.get(said, said)


UNSERVED: list[tuple[dict[str, Any], list[str]]] = [
    ({"phm_layer": True}, ["phm_layer=True is not served"]),
    ({"inv_adapter": "nice", "ln_after": True}, ["ln_after=True is not served", "inv_adapter='nice' is not served"]),
    ({"scaling": "learned"}, ["scaling='learned' is not served: a number is"]),
    ({"non_linearity": "leakyrelu"}, ["non_linearity='leakyrelu' is not served; swish, relu, gelu, gelu_new, silu, tanh are"]),
    ({"use_gating": True, "stochastic_depth": 0.1}, ["use_gating=True", "stochastic_depth=0.1"]),
    ({"residual_before_ln": False}, ["residual_before_ln=False is not served"]),
    ({"mh_adapter": True}, ["mh_adapter=True output_adapter=True is_parallel=False original_ln_before=True is none of houlsby"]),
    ({"original_ln_after": False}, ["original_ln_after=False is not served"]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "words"), UNSERVED, ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_what_is_not_served_is_refused_with_every_reason(values, words, tmp_path):
    written(tmp_path)
    changed(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        layout.read(tmp_path)
    assert len(caught.value.problems) == len(words)
    for problem, word in zip(caught.value.problems, words, strict=True):
        assert problem.startswith(str(tmp_path / layout.CONFIG)) and word in problem


def test_tensors_that_do_not_go_together_are_named_all_at_once(tmp_path):
    written(tmp_path, width=5)
    tensors = load_file(tmp_path / adapterhub.WEIGHTS)
    first, second = (f"model.layers.{block}.output_adapters.adapters.tunesmith" for block in range(2))
    del tensors[f"{first}.adapter_up.bias"]
    tensors[f"{second}.adapter_up.weight"] = torch.ones(64, 4)
    tensors[f"{second}.adapter_norm_before.weight"] = torch.ones(64)
    save_file(tensors, tmp_path / adapterhub.WEIGHTS)
    with pytest.raises(UserError) as caught:
        layout.read(tmp_path)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "model.layers.0.output_adapters: no adapter_up.bias" in text
    assert "adapter_up.weight has the shape (64, 4), (64, 5) goes with adapter_down.0.weight" in text
    assert f"tensor {second}.adapter_norm_before.weight (64,) is not part of a bottleneck adapter" in text


def test_a_folder_of_pickles_is_not_opened(tmp_path):
    written(tmp_path)
    (tmp_path / adapterhub.WEIGHTS).rename(tmp_path / "pytorch_adapter.bin")
    with pytest.raises(UserError, match=r"no adapter\.safetensors \(pytorch_adapter\.bin is a pickle"):
        layout.read(tmp_path)


def test_a_model_that_does_not_fit_is_refused_with_every_place(tmp_path):
    written(tmp_path, width=5)
    file = layout.read(tmp_path)
    with pytest.raises(UserError) as caught:
        layout.fit(file, tiny("gpt2"))
    assert "made for another base model (made/up)" in str(caught.value) and "model.layers.1.output_adapters: no such place" in str(
        caught.value
    )
    other = tiny("llama")
    other.config.hidden_size = 32
    with pytest.raises(UserError, match=r"model\.layers\.0\.output_adapters: made for 64 channels, the model has 32"):
        layout.fit(file, other)
    with pytest.raises(UserError, match="not known for mamba"):
        layout.fit(file, tiny("mamba"))


def test_switching_between_two_folders_on_one_base(tmp_path):
    model, _ = written(tmp_path / "a", variant="pfeiffer")
    written(tmp_path / "b", variant="parallel")
    base = model(IDS).logits
    found: dict[str, torch.Tensor] = {}
    for name in ("a", "b", "a"):
        tuning = layout.fit(layout.read(tmp_path / name), model)
        slots.place(model, tuning.adapter)
        logits = model(IDS).logits
        assert name not in found or torch.equal(found[name], logits)
        found[name] = logits
        slots.lift(model, tuning.adapter)
        assert torch.equal(model(IDS).logits, base)
    assert not torch.allclose(found["a"], found["b"], atol=0.01) and not torch.allclose(found["a"], base, atol=0.01)
