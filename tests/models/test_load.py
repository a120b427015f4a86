"""A folder becomes a model: values, memory as foreseen, and refusals that say what to do."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.models import load as loading
from tunesmith.models.nf4 import Nf4Linear


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_those_of_the_folder_frozen_and_in_evaluation_mode(tiny_llama, dtype):
    base = loading.load(tiny_llama, dtype=dtype)
    stored = load_file(tiny_llama / "model.safetensors")
    assert stored and all(torch.equal(base.model.state_dict()[name], tensor.to(dtype)) for name, tensor in stored.items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters()) and not base.model.training
    assert (base.folder, base.dtype, base.quantized, base.own_attention, base.notes) == (tiny_llama, dtype, False, "sdpa", [])
    assert base.tokenizer.decode(base.tokenizer("Grüße").input_ids) == "Grüße"


def test_only_blocks_are_quantised(tiny_llama):
    base = loading.load(tiny_llama, dtype=torch.bfloat16, quantize=True)
    kinds = {path: type(module) for path, module in base.model.named_modules()}
    assert sum(kind is Nf4Linear for kind in kinds.values()) == 14 and kinds["lm_head"] is torch.nn.Linear
    assert base.model.get_submodule("model.layers.0.self_attn.q_proj").absmax.dtype == torch.uint8
    single = loading.load(tiny_llama, dtype=torch.bfloat16, quantize=True, double_quant=False)
    assert single.model.get_submodule("model.layers.0.self_attn.q_proj").absmax.dtype == torch.float32
    with torch.no_grad():
        assert base.model(some_ids(5)[None]).logits.dtype == torch.bfloat16


def test_rows_that_are_no_whole_blocks_stay_as_they_are_and_are_named(tmp_path):
    config = CONFIGS["llama"]()
    config.intermediate_size = 100
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_tokenizer", lambda folder: None)
        base = loading.load(tmp_path, dtype=torch.float32, quantize=True)
    assert base.notes == ["2 linear layers stay unquantised, their rows are not whole blocks of 64: model.layers.0.mlp.down_proj ..."]
    assert type(base.model.model.layers[0].mlp.down_proj) is torch.nn.Linear
    size = loading.size_of(loading.skeleton(config), torch.float32, True, True)
    assert size.weight_bytes == pytest.approx(held(base.model), rel=0.01)


def held(model):
    tensors = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if "inv_freq" not in n)]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("dtype", "quantize", "double"),
    [(torch.float32, False, True), (torch.bfloat16, False, True), (torch.bfloat16, True, True), (torch.bfloat16, True, False)],
)
def test_the_size_said_beforehand_is_the_size_in_memory(tiny_llama, dtype, quantize, double):
    base = loading.load(tiny_llama, dtype=dtype, quantize=quantize, double_quant=double)
    size = loading.size_of(loading.skeleton(loading.load_config(tiny_llama)), dtype, quantize, double)
    assert size.weight_bytes == pytest.approx(held(base.model), rel=0.01)
    assert size.total_parameters == sum(tensor.numel() for tensor in load_file(tiny_llama / "model.safetensors").values())
    assert size.largest_tensor_bytes == 384 * 64 * dtype.itemsize


def test_a_tied_head_is_counted_once():
    bones = loading.skeleton(CONFIGS["llama_tied"]())
    plain = loading.skeleton(CONFIGS["llama"]())
    assert (
        loading.size_of(plain, torch.float32, False, True).total_parameters
        == 96 * 64 + loading.size_of(bones, torch.float32, False, True).total_parameters
    )


def test_a_skeleton_takes_no_memory():
    bones = loading.skeleton(CONFIGS["qwen3"]())
    assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
    with pytest.raises(UserError, match="t5 is not a causal language model"):
        loading.skeleton(AutoConfig.for_model("t5"))


def test_missing_tensors_are_all_named(folder):
    damage(folder, lambda tensors: [tensors.pop(f"model.layers.1.mlp.{name}_proj.weight") for name in ("up", "down")])
    with pytest.raises(UserError) as caught:
        loading.load(folder, dtype=torch.float32)
    assert caught.value.problems == tuple(
        f"{folder}: the checkpoint has no tensor for model.layers.1.mlp.{name}_proj.weight, which LlamaForCausalLM needs"
        for name in ("down", "up")
    )


def test_tensors_of_another_shape_are_all_named(folder):
    other = {"model.norm.weight": torch.ones(63), "model.layers.0.mlp.up_proj.weight": torch.ones(192, 64)}
    damage(folder, lambda tensors: tensors.update(other))
    with pytest.raises(UserError) as caught:
        loading.load(folder, dtype=torch.float32)
    assert caught.value.problems == (
        f"{folder}: model.layers.0.mlp.up_proj.weight is (192, 64) in the checkpoint, and LlamaForCausalLM needs (128, 64)",
        f"{folder}: model.norm.weight is (63,) in the checkpoint, and LlamaForCausalLM needs (64,)",
    )
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.absmax is \(192,\)"):  # the parts of its codes
        loading.load(folder, dtype=torch.float32, quantize=True)


def test_a_checkpoint_cut_short_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load(folder, dtype=torch.float32)


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load(folder, dtype=torch.float32)


def test_a_pickle_is_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        loading.load(folder, dtype=torch.float32)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "made-up"}'])
def test_a_config_that_cannot_be_used(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"its config.json cannot be used"):
        loading.load_config(folder)


def test_code_of_a_checkpoint_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "made-up", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UserError, match="cannot be used"):
        loading.load_config(folder)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"version": "1.0", "model": {"type": "BPE"}}'])
def test_a_tokenizer_that_cannot_be_opened(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="its tokenizer cannot be opened"):
        loading.load_tokenizer(folder)


def test_nf4_on_expert_stacks_is_refused_with_the_reason(tmp_path):
    tiny("mixtral").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"nf4 does not reach the 4 expert stacks of this mixtral, \d\d% of its parameters") as caught:
        loading.load(tmp_path, dtype=torch.float32, quantize=True)
    assert "leave model.quantize at null" in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [({"eos_token_id": [5, 6]}, 7, [5, 6]), ({"eos_token_id": 5}, 7, [5]), ({}, 7, [7]), (None, [7, 8], [7, 8]), (None, None, [])],
)
def test_stop_ids(tmp_path, generation, config, expected):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    values = CONFIGS["llama"]()
    values.eos_token_id = config
    assert loading.stop_ids(tmp_path, values) == expected


def test_attention_is_exchanged_for_a_while_only():
    model = tiny("llama")
    with pytest.raises(RuntimeError), loading.attention(model, "eager"):
        assert model.config._attn_implementation == "eager"
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"


def test_the_environment_is_left_alone(tiny_llama, monkeypatch):
    monkeypatch.delenv("HF_DEACTIVATE_ASYNC_LOAD", raising=False)
    loading.load(tiny_llama, dtype=torch.float32)
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "0")
    loading.load(tiny_llama, dtype=torch.float32)
    assert os.environ["HF_DEACTIVATE_ASYNC_LOAD"] == "0"
