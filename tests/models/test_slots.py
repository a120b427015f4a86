"""Roles, blocks and places, over every family whose class this `transformers` has."""

from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.methods.settings import Role
from tunesmith.models import slots
from tunesmith.models.load import quiet
from tunesmith.models.slots import FAMILIES, ROLES

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 2, "word_embed_proj_dim": 64,
    "num_experts": 4, "num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rotary_dim": 8,
}  # fmt: skip
NO_HEAD_SIZE = {"falcon"}


def skeleton(model_type: str) -> Any:
    """A small model of this architecture on the meta device."""
    known = AutoConfig.for_model(model_type).get_text_config()
    values = {name: value for name, value in SMALL.items() if hasattr(known, name)}
    if model_type not in NO_HEAD_SIZE and hasattr(known, "head_dim"):
        values["head_dim"] = 16
    if model_type == "gemma3":
        values = {"text_config": values}
    with torch.device("meta"), quiet():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_role_of_a_family_is_one_linear_layer_in_every_block(model_type):
    model = skeleton(model_type)
    if model_type == "qwen3_moe":  # its roles gate, up and down are those of the dense layers between the others
        model.config.mlp_only_layers = [0, 1]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model.config)
    assert slots.family(model) is FAMILIES[model_type] and len(slots.blocks(model)) == 2
    for role, ending in FAMILIES[model_type].items():
        places, _ = slots.select(model, [role])
        assert len(places) == 2, f"{role}: {[place.path for place in places]}"
        for place, (path, _) in zip(places, slots.blocks(model), strict=True):
            assert place.path.startswith(path) and place.path.endswith("." + ending)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_all_is_every_matrix_of_attention_and_mlp(model_type):
    """What `all` leaves out may only be a gate with one output (qwen2_moe); a routers' or a new layer would be found here."""
    model = skeleton(model_type)
    places, notes = slots.select(model, "all")
    left_out = {place.path for place in slots.linears(model)} - {place.path for place in places}
    assert all(path.endswith("shared_expert_gate") for path in left_out)
    assert not any("not in the table" in note for note in notes)
    assert len(places) >= 8


def test_places_know_their_shape():
    places, notes = slots.select(tiny("llama"), ["q", "k", "down"])
    assert [(p.path, p.in_features, p.out_features, p.transposed) for p in places[:3]] == [
        ("model.layers.0.self_attn.q_proj", 64, 64, False),
        ("model.layers.0.self_attn.k_proj", 64, 32, False),
        ("model.layers.0.mlp.down_proj", 128, 64, False),
    ]
    assert len(places) == 6 and notes == []
    assert all(place.transposed for place in slots.select(tiny("gpt2"), "all")[0])


def test_endings_of_paths_and_roles_may_be_mixed():
    model = tiny("llama")
    assert [p.path for p in slots.select(model, ["mlp.up_proj", "v"])[0]] == [
        f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.v_proj", "mlp.up_proj")
    ]
    assert [p.path for p in slots.select(model, ["layers.1.self_attn.o_proj"])[0]] == ["model.layers.1.self_attn.o_proj"]
    with pytest.raises(LookupError):
        slots.select(model, ["_proj"])  # an ending is made of whole names


def test_what_is_not_there_is_named_with_what_is():
    with pytest.raises(LookupError) as caught:
        slots.select(tiny("llama"), ["q", "query", "c_fc"])
    assert str(caught.value.args[0]) == (
        "no linear layer query, c_fc in this model; roles: q k v o gate up down; "
        "layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    for name in ("lm_head", "model.embed_tokens"):
        with pytest.raises(
            LookupError, match=rf"no linear layer {name} in this model; to train {name} .*: method.modules_to_save=\[{name}\]"
        ):
            slots.select(tiny("llama"), ["q", name])
    with pytest.raises(LookupError, match="no linear layer gate in this model; its experts are 3-D parameters"):
        slots.select(tiny("mixtral"), ["q", "gate"])


def test_a_role_inside_a_fused_matrix_takes_the_whole_and_says_so():
    places, notes = slots.select(tiny("phi3"), ["q", "v", "gate"])
    assert {place.path.rpartition(".")[2] for place in places} == {"qkv_proj", "gate_up_proj"} and len(places) == 4
    assert notes == [
        "q is part of self_attn.qkv_proj in this architecture, which is tuned as a whole",
        "v is part of self_attn.qkv_proj in this architecture, which is tuned as a whole",
        "gate is part of mlp.gate_up_proj in this architecture, which is tuned as a whole",
    ]


def test_an_unknown_architecture_falls_back_and_says_so():
    model = tiny("lfm2")
    assert slots.family(model) is None
    places, notes = slots.select(model, "all")
    assert [place.path for place in places] == [place.path for place in slots.linears(model)] and len(places) > 8
    assert notes == [f"lfm2 is not in the table of architectures: all {len(places)} linear layers of the repeated blocks are targets"]
    assert not any(place.path.startswith("lm_head") for place in places)
    with pytest.raises(LookupError, match="roles: none in the table for this architecture; layers: "):
        slots.select(model, ["q"])


def test_the_share_of_untouched_experts_is_said():
    model = tiny("mixtral")
    stacks = slots.experts(model)
    share = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n) / sum(p.numel() for p in model.parameters())
    assert len(stacks) == 4 and {stack.path.rpartition(".")[2] for stack in stacks} == {"gate_up_proj", "down_proj"}
    for targets in ("all", ["q"]):
        assert slots.select(model, targets)[1] == [
            f"4 expert stacks with {share:.0%} of the parameters are not reached by linear adapters and stay as they are"
        ]
    assert slots.experts(tiny("llama")) == [] and slots.experts(tiny("mamba")) == []


def test_a_model_without_linear_layers_is_refused():
    model = tiny("llama")
    model.model.layers = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))
    with pytest.raises(LookupError, match="no linear layer in the repeated blocks of this llama"):
        slots.select(model, "all")


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_the_layers_of_the_model(name):
    model = tiny(name)
    found = slots.blocks(model)
    assert len(found) == 2
    assert len({type(block) for _, block in found}) == 1
    assert all(model.get_submodule(path) is block for path, block in found)


def test_blocks_are_those_of_the_language_model_not_of_a_deeper_picture_tower():
    text = CONFIGS["llama"]()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "model_type": "clip_vision_model",
    }
    with torch.device("meta"), quiet():
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision))
    assert [path for path, _ in slots.blocks(model)] == ["model.language_model.layers.0", "model.language_model.layers.1"]


class Doubled(nn.Module):
    """An adapter that shows that it was called."""

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return 2 * slots.own_forward(base, x)


def test_placing_changes_what_is_computed_and_lifting_restores_the_base_exactly():
    model = tiny("llama")
    ids = some_ids(9)[None]
    before, names, keys = model(ids).logits, [n for n, _ in model.named_modules()], list(model.state_dict())
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    adapter = {place.path: Doubled() for place in slots.select(model, ["v"])[0]}
    slots.place(model, adapter)
    assert [n for n, _ in model.named_modules()] == names and list(model.state_dict()) == keys
    assert not torch.allclose(model(ids).logits, before)
    layer = model.get_submodule("model.layers.0.self_attn.v_proj")
    x = torch.randn(1, 64)
    assert torch.equal(layer(x), 2 * nn.functional.linear(x, layer.weight)) and torch.equal(slots.own_forward(layer, x), layer(x) / 2)
    with pytest.raises(AssertionError, match="already holds an adapter"):
        slots.place(model, adapter)
    slots.lift(model, adapter)
    slots.lift(model, adapter)  # nothing there any more: nothing happens
    assert torch.equal(model(ids).logits, before)
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes


def test_two_adapters_take_turns_on_one_base():
    model = tiny("llama")
    ids = some_ids(9)[None]
    base = model(ids).logits
    one, other = {"model.layers.0.self_attn.v_proj": Doubled()}, {"model.layers.1.mlp.up_proj": Doubled()}
    seen = []
    for adapter in (one, other, one):
        slots.place(model, adapter)
        seen.append(model(ids).logits)
        slots.lift(model, adapter)
    assert torch.equal(seen[0], seen[2]) and not torch.allclose(seen[0], seen[1]) and torch.equal(model(ids).logits, base)


def test_tensors_of_an_adapter_by_name():
    adapter = {"a.b": nn.Linear(2, 3), "c": nn.Linear(2, 3, bias=False)}
    assert [name for name, _ in slots.indexed(adapter)] == ["a.b.weight", "a.b.bias", "c.weight"]


def test_roles_are_the_ones_that_settings_offer():
    assert get_args(Role) == ROLES
