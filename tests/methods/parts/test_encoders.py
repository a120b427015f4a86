"""Encoders of virtual tokens: sizes, first values, gradients. `oracle/test_peft_prompt.py` has peft judge what they compute."""

from typing import Any

import pytest
import torch

from tunesmith.methods.parts import encoders

KINDS = pytest.mark.parametrize("kind", encoders.ENCODERS)


def begun(kind: str, seed: int = 0, size: float = 0.5, path: str = "here", tokens: int = 6, width: int = 16, hidden: int = 24):
    made = encoders.build(kind, tokens, width, hidden)
    encoders.begin(made, seed, path, size)
    return made


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("mlp", 6 * 16 + 2 * 16 * 24 + 24**2 + 2 * 24 + 16),
        ("lstm", 6 * 16 + 10 * 16 * 24 + 36 * 24**2 + 34 * 24 + 16),
    ],
)
def test_counts_are_the_closed_form(kind, count):
    made = encoders.build(kind, 6, 16, 24, "meta")
    assert sum(parameter.numel() for parameter in made.parameters()) == count
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}


@KINDS
def test_building_draws_no_random_numbers(kind):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    made = encoders.build(kind, 6, 16, 24)
    assert torch.equal(torch.rand(2), expected)
    assert {(parameter.device.type, parameter.dtype) for parameter in made.parameters()} == {("cpu", torch.float32)}


@KINDS
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_first_values_make_virtual_tokens_of_the_size_asked_for(kind, size):
    made = begun(kind, size=size)
    out_PC = made()
    assert out_PC.shape == (6, 16) and out_PC.square().mean().sqrt().item() == pytest.approx(size, rel=1e-5)
    between = (out_PC - out_PC.mean(0)).square().mean().sqrt().item()
    assert between > 0.4 * size, "virtual tokens differ from one another"
    assert made.embedding.std().item() == pytest.approx(1.0, rel=0.2)
    assert set(encoders.last_layer(made)) == {f"mlp.{len(made.mlp) - 1}.{name}" for name in ("weight", "bias")}


@KINDS
def test_matrices_are_as_torch_draws_them_and_biases_zero(kind):
    reference = encoders.ENCODERS[kind](6, 64, 48)
    made = begun(kind, width=64, hidden=48)
    for (name, ours), theirs in zip(made.named_parameters(), reference.parameters(), strict=True):
        if "bias" in name:
            assert ours.eq(0).all()
        elif name != "embedding" and name not in encoders.last_layer(made):
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05), name
            assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.05), name


@KINDS
def test_first_values_depend_on_seed_path_and_name_alone(kind):
    torch.manual_seed(1)
    one = begun(kind)
    torch.manual_seed(2)
    again, seed, path = begun(kind), begun(kind, seed=1), begun(kind, path="there")
    for name, parameter in one.named_parameters():
        if "bias" in name:
            continue
        assert torch.equal(parameter, dict(again.named_parameters())[name])
        assert not torch.equal(parameter, dict(seed.named_parameters())[name])
        assert not torch.equal(parameter, dict(path.named_parameters())[name])


@KINDS
@pytest.mark.parametrize("width", [64, 576])
def test_the_natural_size_is_that_of_values_as_drawn(kind, width):
    """What the last layer's rate is scaled by: right to a factor that no rate is known to."""
    made = encoders.build(kind, 20, width, width)
    encoders.begin(made, 0, "", 1.0)
    last: Any = made.mlp[-1]
    as_drawn = last.in_features**-0.5 / 3**0.5 / last.weight.std()  # uniform within 1/√in
    assert 0.6 < (as_drawn / made.natural_size).item() < 1.6


@KINDS
def test_every_tensor_has_a_gradient_also_in_evaluation_mode(kind):
    made = begun(kind).train(False)
    made().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in made.parameters())


def test_an_lstm_sees_its_neighbours_on_both_sides_and_an_mlp_none():
    def moved(kind: str) -> list[bool]:
        made = begun(kind)
        before = made().detach()
        with torch.no_grad():
            made.embedding[2] += 1.0
        return (made() != before).any(1).tolist()

    assert moved("mlp") == [False, False, True, False, False, False] and moved("lstm") == [True] * 6
