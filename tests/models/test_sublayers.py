"""Where a block's sublayers are, by what they compute in each family."""

from typing import Any

import pytest
import torch

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.models import slots, sublayers
from tunesmith.models.sublayers import FAMILIES, Sublayers

KNOWN = [name for name in CONFIGS if name != "mamba"]
BESIDE = {"phi", "cohere", "gptj", "gpt_neox", "falcon"}  # attention and MLP read the same stream
# What happens to a sublayer's output on its way into the stream.
NORMS_BEHIND = {
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
}
FACTOR = {"granite": 0.5}


def model_of(name: str) -> Any:
    if name in FACTOR:
        import transformers

        model = tiny(name)
        config = transformers.GraniteConfig.from_dict(model.config.to_dict() | {"residual_multiplier": FACTOR[name]})
        other = type(model)(config).eval()
        other.load_state_dict(model.state_dict())
        return other
    return tiny(name)


def seen(model: Any, found: Sublayers) -> dict[str, torch.Tensor]:
    """Input and output of the block, outputs of its sublayers, and what is read for the MLP's sum, in one pass."""
    tensors: dict[str, torch.Tensor] = {}

    def first(value: Any) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value

    def note(key: str, inputs: bool) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            found = (args[0] if args else kwargs["hidden_states"]) if inputs else first(output)
            tensors[key] = found.clone()  # Falcon adds in place

        return hook

    places = {
        "x": ("", True),
        "y": ("", False),
        "attention": (found.attention, False),
        "mlp": (found.mlp, False),
        "reads": (found.reads, True),
    }
    block = model.get_submodule(found.block)
    hooks = [block.get_submodule(path).register_forward_hook(note(key, inputs), with_kwargs=True) for key, (path, inputs) in places.items()]
    with torch.no_grad():
        model(some_ids(11)[None])
    for hook in hooks:
        hook.remove()
    return {key: tensor.reshape(1, 11, -1) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", KNOWN)
def test_the_stream_is_the_sum_of_what_the_places_hand_over(name):
    model = model_of(name)
    found = sublayers.find(model)
    assert [each.block for each in found] == [path for path, _ in slots.blocks(model)]
    for each in found:
        parts = seen(model, each)
        attention, mlp = parts["attention"], parts["mlp"]
        if name in NORMS_BEHIND:
            behind = [model.get_submodule(f"{each.block}.{norm}") for norm in NORMS_BEHIND[name]]
            with torch.no_grad():
                attention, mlp = behind[0](attention), behind[1](mlp)
        attention, mlp = FACTOR.get(name, 1.0) * attention, FACTOR.get(name, 1.0) * mlp
        torch.testing.assert_close(parts["reads"], parts["x"] if name in BESIDE else parts["x"] + attention, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts["y"], parts["x"] + attention + mlp, rtol=1e-5, atol=1e-5)


def test_every_family_that_linear_adapters_know_is_known():
    assert set(slots.FAMILIES) <= set(FAMILIES)


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(LookupError, match=r"not known for mamba; known: arcee, bloom, .*method\.name=lora"):
        sublayers.find(tiny("mamba"))


def test_a_block_without_the_place_is_named():
    model = tiny("llama")
    del model.model.layers[1].post_attention_layernorm
    with pytest.raises(LookupError, match=r"model\.layers\.1 has no post_attention_layernorm"):
        sublayers.find(model)


def made(configuration: str, **settings: Any) -> Any:
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 96, **settings}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, configuration)(**small)).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


_MLP: dict[str, Any] = {"intermediate_size": 48}
_GROUPED: dict[str, Any] = _MLP | {"num_key_value_heads": 2, "pad_token_id": 0}
# case -> configuration, what it is told, whether attention and MLP stand beside each other
TWO_SHAPES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "falcon, one after the other": ("FalconConfig", {"parallel_attn": False}, False),
    "falcon 40b": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}, True),
    "gpt_neox, one after the other": ("GPTNeoXConfig", _MLP | {"use_parallel_residual": False}, False),
    "stablelm": ("StableLmConfig", _GROUPED, False),
    "stablelm, beside each other": ("StableLmConfig", _GROUPED | {"use_parallel_residual": True}, True),
    "cohere2": ("Cohere2Config", _GROUPED, True),
    "olmo": ("OlmoConfig", _GROUPED, False),
    "glm": ("GlmConfig", _GROUPED | {"head_dim": 8}, False),
    "nemotron": ("NemotronConfig", _GROUPED, False),
    "arcee": ("ArceeConfig", _GROUPED, False),
}


@pytest.mark.parametrize("case", TWO_SHAPES)
def test_families_of_two_shapes(case):
    configuration, settings, beside = TWO_SHAPES[case]
    model = made(configuration, **settings)
    (found,) = sublayers.find(model)
    parts = seen(model, found)
    torch.testing.assert_close(parts["reads"], parts["x"] + (0 if beside else parts["attention"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["y"], parts["x"] + parts["attention"] + parts["mlp"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("configuration", "norms", "reads"),
    [
        ("Olmo2Config", ("post_attention_layernorm", "post_feedforward_layernorm"), "mlp"),
        ("Exaone4Config", ("post_attention_layernorm", "post_feedforward_layernorm"), "mlp"),
        ("Glm4Config", ("post_self_attn_layernorm", "post_mlp_layernorm"), "post_attention_layernorm"),
    ],
)
def test_norms_behind_the_sublayers_come_later(configuration, norms, reads):
    model = made(configuration, intermediate_size=48, num_key_value_heads=2, pad_token_id=0, head_dim=8)
    (found,) = sublayers.find(model)
    parts, block = seen(model, found), model.get_submodule(found.block)
    assert found.reads == reads
    with torch.no_grad():
        attention, mlp = (block.get_submodule(norm)(parts[key]) for norm, key in zip(norms, ("attention", "mlp"), strict=True))
    torch.testing.assert_close(parts["reads"], parts["x"] + attention, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts["y"], parts["x"] + attention + mlp, rtol=1e-4, atol=1e-4)


def test_opt_with_its_norms_behind_each_sum():
    model = made("OPTConfig", ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=False, pad_token_id=0)
    (found,) = sublayers.find(model)
    parts, block = seen(model, found), model.get_submodule(found.block)
    with torch.no_grad():
        stream = block.self_attn_layer_norm(parts["x"] + parts["attention"])
        torch.testing.assert_close(parts["reads"], stream, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parts["y"], block.final_layer_norm(stream + parts["mlp"]), rtol=1e-4, atol=1e-4)
