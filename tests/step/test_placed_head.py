"""The loss where something stands at the head. Against the classes' own numbers it is judged in `methods/test_extras.py`."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tunesmith.models.head import Head
from tunesmith.step.placed_head import placed_loss

VOCABULARY, WIDTH = 50, 12


def made(frozen: bool = False) -> tuple[torch.Tensor, torch.Tensor, Head, list[nn.Parameter]]:
    torch.manual_seed(0)
    weight_VC, one, two = torch.randn(VOCABULARY, WIDTH), nn.Parameter(torch.randn(4, WIDTH)), nn.Parameter(torch.randn(VOCABULARY, 4))
    for parameter in (one, two):
        parameter.requires_grad_(not frozen)
    head = Head(weight_VC, None, 0.5, 3.0, lambda h_NC: h_NC @ weight_VC.T + (h_NC @ one.T) @ two.T, (one, two))
    return torch.randn(21, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (21,)), head, [one, two]


@pytest.mark.parametrize("rows", [1, 8, 21, 100])
def test_value_and_gradients_whatever_the_chunk(rows: int) -> None:
    h_NC, targets_N, head, trained = made()
    loss = placed_loss(h_NC, targets_N, head, 0.1, rows)
    expected = 0.1 * cross_entropy(head.logits(h_NC), targets_N, reduction="sum")
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(3 * loss, [h_NC, *trained]), torch.autograd.grad(3 * expected, [h_NC, *trained])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_is_frozen_gets_no_gradient() -> None:
    h_NC, targets_N, head, trained = made(frozen=True)
    placed_loss(h_NC, targets_N, head, 1.0, 8).backward()
    assert h_NC.grad is not None and all(parameter.grad is None for parameter in trained)
    _, _, head, trained = made()
    placed_loss(h_NC.detach(), targets_N, head, 1.0, 8).backward()
    assert all(parameter.grad is not None for parameter in trained), "rows of the head are trained behind hidden states that are not"


def test_without_gradients_none_is_made() -> None:
    h_NC, targets_N, head, _ = made()
    with torch.no_grad():
        loss = placed_loss(h_NC, targets_N, head, 1.0, 8)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy(head.logits(h_NC), targets_N, reduction="sum").detach())
