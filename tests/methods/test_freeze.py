"""Which tensors freeze tuning trains."""

import pytest

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.methods import freeze
from tunesmith.methods.settings import Freeze
from tunesmith.models import slots


def names(name, **settings):
    return list(freeze.build(tiny(name), Freeze(**settings)).parameters)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_blocks_whole_and_nothing_else(name):
    model = tiny(name)
    last = slots.blocks(model)[-1][0] + "."
    assert names(name, layers=1) == [key for key, _ in model.named_parameters() if key.startswith(last)]
    both = [path + "." for path, _ in slots.blocks(model)]
    assert names(name, layers=2) == [key for key, _ in model.named_parameters() if key.startswith(tuple(both))]


def test_the_count_is_the_pages_closed_form():
    model = tiny("llama")
    c, m, ke = model.config.hidden_size, model.config.intermediate_size, model.config.num_key_value_heads * model.config.head_dim
    for n in (1, 2):
        assert freeze.build(model, Freeze(layers=n)).count == n * (2 * c * c + 2 * c * ke + 3 * c * m + 2 * c)


def test_embeddings_and_head():
    blocks = set(names("llama", layers=1))
    assert set(names("llama", layers=1, embeddings=True)) - blocks == {"model.embed_tokens.weight"}
    assert set(names("llama", layers=1, head=True)) - blocks == {"model.norm.weight", "lm_head.weight"}
    assert names("llama", layers=2, embeddings=True, head=True) == [key for key, _ in tiny("llama").named_parameters()]


def test_a_tied_head_goes_with_the_embeddings():
    blocks = set(names("llama_tied", layers=1))
    assert set(names("llama_tied", layers=1, head=True)) - blocks == {"model.norm.weight"}
    assert set(names("llama_tied", layers=1, embeddings=True)) - blocks == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("gpt2", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),  # not its learned positions
        ("opt", {"model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias"}),
        ("bloom", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),  # not the norm of its embeddings
        ("gpt_neox", {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight", "lm_head.weight"}),
        ("phi", {"model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight", "lm_head.bias"}),
    ],
)
def test_the_final_norm_is_found_in_every_family(name, head):
    found = set(names(name, layers=1, head=True)) - set(names(name, layers=1))
    assert found == head & set(dict(tiny(name).named_parameters()))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_blocks(name):
    model = tiny(name)
    first = slots.blocks(model)[0][0] + "."
    assert names(name, layers=1, end="first") == [key for key, _ in model.named_parameters() if key.startswith(first)]


def test_the_first_blocks_with_embeddings_and_head():
    found = names("llama", layers=1, end="first", embeddings=True, head=True)
    assert not any(name.startswith("model.layers.1.") for name in found)
    assert set(found) - set(names("llama", layers=1, end="first")) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_a_pattern_is_matched_against_whole_names():
    norms = names("llama", pattern=r".*norm.*")
    assert norms == [key for key, _ in tiny("llama").named_parameters() if "norm" in key] and len(norms) == 5
    assert names("llama", pattern=r"model\.layers\.1\.mlp\..*") == [
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    ]
    assert names("llama", pattern=r"lm_head\.weight|model\.norm\.weight") == ["model.norm.weight", "lm_head.weight"]


def test_a_pattern_stands_in_place_of_layers_and_beside_the_rest():
    found = names("llama", pattern=r".*q_proj\.weight", layers=99, embeddings=True, head=True)
    queries = {f"model.layers.{block}.self_attn.q_proj.weight" for block in range(2)}
    assert set(found) == queries | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_a_tied_head_goes_by_both_of_its_names():
    assert names("llama_tied", pattern=r"lm_head\.weight") == ["model.embed_tokens.weight"]


def test_expert_stacks_and_routers_by_pattern():
    found = names("mixtral", pattern=r".*\.gate\.weight")
    assert found == ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate.weight"]


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(LookupError) as caught:
        names("llama", pattern=r"q_proj")
    text = str(caught.value)
    assert "matches no tensor's whole name; near it: model.layers.0.self_attn.q_proj.weight" in text and "(.*)" in text
    assert "model.layers.1" not in text, "one layer of a kind is enough"
    with pytest.raises(LookupError) as caught:
        names("llama", pattern=r"model\.layers\.\d+\.self_attn\.o_prj\.weight")
    assert "near it: model.layers.0.self_attn.o_proj.weight" in str(caught.value) and "(.*)" not in str(caught.value)
    with pytest.raises(LookupError, match=r"method\.pattern='\(' is no regular expression: missing \)"):
        names("llama", pattern="(")


def test_more_layers_than_there_are():
    with pytest.raises(LookupError, match=r"method\.layers=3, but the model has 2 blocks"):
        names("llama", layers=3)


def test_gradients_reach_the_first_blocks_through_the_others():
    model = tiny("llama")
    tuning = freeze.build(model, Freeze(layers=1, end="first"))
    for parameter in tuning.parameters.values():
        parameter.requires_grad_(True)
    model(some_ids(6)[None]).logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in tuning.parameters.values())
    assert model.model.layers[1].mlp.up_proj.weight.grad is None


def test_nothing_is_computed_backwards_below_the_first_trained_block():
    model = tiny("llama")
    tuning = freeze.build(model, Freeze(layers=1))
    for parameter in tuning.parameters.values():
        parameter.requires_grad_(True)
    seen = {}
    for path, block in slots.blocks(model):
        block.register_forward_hook(lambda module, inputs, output, path=path: seen.update({path: output.requires_grad}))
    model(some_ids(6)[None]).logits.sum().backward()
    assert seen == {"model.layers.0": False, "model.layers.1": True}
    assert all(parameter.grad is not None for parameter in tuning.parameters.values())
