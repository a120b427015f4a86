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


def test_more_layers_than_there_are():
    with pytest.raises(LookupError, match=r"method\.layers=3, but the model has 2 blocks"):
        names("llama", layers=3)


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
