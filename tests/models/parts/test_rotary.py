"""Rotary embeddings against the classes' own function, and the attention whose forward looks ours up."""

# mypy: disable-error-code="func-returns-value"

import sys

import pytest
import torch
from transformers.models.glm import modeling_glm
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from tests.tiny_models import tiny
from tunesmith.models.parts import rotary


def drawn(dtype, size):
    torch.manual_seed(0)
    q, cos, sin = torch.randn(2, 5, 3, 8).transpose(1, 2).to(dtype), torch.randn(2, 5, size).to(dtype), torch.randn(2, 5, size).to(dtype)
    return q, cos, sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 4])
def test_values_and_gradients_are_those_of_the_classs_function(dtype, size):
    q, cos, sin = drawn(dtype, size)
    direction = torch.randn(q.shape).to(dtype)
    found = []
    for way in (lambda q: modeling_phi3.apply_rotary_pos_emb(q, q, cos, sin)[0], lambda q: rotary.rotated(q, cos, sin)):
        leaf = q.clone().requires_grad_()
        y = way(leaf)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, direction)))
    tolerance = 1e-6 if dtype == torch.float32 else 0.0  # below fp32 it rounds where the class does
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)
    assert found[1][0].stride() == q.stride() or size == 4


def test_neighbours_that_are_rotated_in_pairs_are_not_halves():
    assert rotary._rotates(modeling_llama.apply_rotary_pos_emb, 8, torch.float32)
    assert not rotary._rotates(modeling_llama.apply_rotary_pos_emb, 4, torch.float32)  # it has no channels that pass
    assert rotary._rotates(modeling_phi3.apply_rotary_pos_emb, 4, torch.float32)
    assert not rotary._rotates(modeling_glm.apply_rotary_pos_emb, 8, torch.float32)


def test_an_attention_computes_the_same_and_its_class_and_file_stay_as_they_are():
    model = tiny("llama")
    attention, before = model.model.layers[0].self_attn, modeling_llama.apply_rotary_pos_emb
    forward = rotary.forward_of(attention, torch.float32)
    x = torch.randn(1, 9, 64)
    position_embeddings = model.model.rotary_emb(x, torch.arange(9)[None])
    plain = attention(x, position_embeddings=position_embeddings, attention_mask=None)[0]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours = forward(x.requires_grad_(), position_embeddings=position_embeddings, attention_mask=None)[0]
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert "_RotatedBackward" in names(ours.grad_fn)
    assert modeling_llama.apply_rotary_pos_emb is before is vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    assert "forward" not in vars(attention)


def names(function):
    """Of every operator of a graph."""
    found, todo = set(), [function]
    while todo:
        one = todo.pop()
        if one is not None and one not in found:
            found.add(one)
            todo += [other for other, _ in one.next_functions]
    return {one.name() for one in found}


def test_a_module_without_such_a_function_is_left_alone():
    model = tiny("llama")
    assert rotary.forward_of(model.model.layers[0].mlp, torch.float32) is None
    assert rotary.forward_of(tiny("gpt2").transformer.h[0].attn, torch.float32) is None


def test_called_in_another_way_it_is_theirs():
    q, cos, sin = drawn(torch.float32, 8)
    instead = rotary._instead_of(modeling_llama.apply_rotary_pos_emb, in_part=False)
    by_token = q.transpose(1, 2)  # heads behind tokens
    ours, theirs = (f(by_token, by_token, cos, sin, unsqueeze_dim=2) for f in (instead, modeling_llama.apply_rotary_pos_emb))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
