"""AdamW with 8-bit moments stays near AdamW, in an eighth of the memory."""

from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.step.adam8bit import BLOCK, SMALL, Adam8bit

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def pair(*shape):
    torch.manual_seed(0)
    start = torch.randn(*shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    return ours, theirs, Adam8bit([{"params": [ours]}], **SETTINGS), torch.optim.AdamW([theirs], **SETTINGS)


def run(parameters, optimizers, steps):
    for step in range(steps):
        gradient = torch.randn(parameters[0].shape, generator=torch.Generator().manual_seed(step)) + 0.3
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()


def test_small_tensors_are_exactly_adamw():
    ours, theirs, our_optimizer, their_optimizer = pair(SMALL - 1)
    run([ours, theirs], [our_optimizer, their_optimizer], 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert set(our_optimizer.state[ours]) == {"step", "first", "second"}


def test_large_ones_stay_near_it():
    ours, theirs, our_optimizer, their_optimizer = pair(100, 100)
    start = theirs.detach().clone()
    run([ours, theirs], [our_optimizer, their_optimizer], 20)
    moved = (theirs - start).abs().mean()
    assert (ours - theirs).abs().mean() < 0.05 * moved, "the rounding of moments is small beside the way that was gone"


def test_moments_are_a_byte_each_and_a_scale_for_every_block():
    ours, _, optimizer, _ = pair(64, 128)
    run([ours], [optimizer], 1)
    state = optimizer.state[ours]
    assert set(state) == {"step", "first_codes", "first_scales", "second_codes", "second_scales"}
    assert state["first_codes"].dtype == torch.uint8 and state["first_codes"].numel() == ours.numel()
    assert state["second_scales"].numel() == ours.numel() // BLOCK and state["second_scales"].dtype == torch.float32


def test_state_is_kept_in_place():
    """A resumed run copies into these tensors; they must be the ones that the next step reads."""
    ours, _, optimizer, _ = pair(64, 128)
    run([ours], [optimizer], 1)
    before = {name: value.data_ptr() for name, value in optimizer.state[ours].items()}
    run([ours], [optimizer], 2)
    assert {name: value.data_ptr() for name, value in optimizer.state[ours].items()} == before
    assert optimizer.state[ours]["step"].item() == 3


def test_weight_decay_is_decoupled():
    parameter = nn.Parameter(torch.full((SMALL,), 2.0))
    optimizer = Adam8bit([{"params": [parameter]}], **SETTINGS)
    parameter.grad = torch.zeros(SMALL)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((SMALL,), 2.0 * (1 - 1e-2 * 0.1)))


@pytest.mark.parametrize("size", [8, SMALL])
def test_tensors_without_a_gradient_are_left_alone(size):
    parameter = nn.Parameter(torch.ones(size))
    optimizer = Adam8bit([{"params": [parameter]}], **SETTINGS)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(size)) and not optimizer.state[parameter]
