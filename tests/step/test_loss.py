"""The chunked loss over learned positions against torch's own cross entropy, value and every gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tunesmith.models.head import Head
from tunesmith.step import loss as losses
from tunesmith.step.loss import chunk_rows, learned_loss, loss_of_logits

VOCABULARY, WIDTH = 300, 24


def made(count, dtype=torch.float32):
    torch.manual_seed(count)
    h_NC = torch.randn(count, WIDTH, dtype=dtype)
    return h_NC, torch.randint(0, VOCABULARY, (count,)), torch.randn(VOCABULARY, WIDTH, dtype=dtype), torch.randn(VOCABULARY, dtype=dtype)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """16 positions a chunk."""
    monkeypatch.setattr(losses, "_BUDGET_BYTES", 4 * VOCABULARY * 16)


HEADS = {"plain": (1.0, None), "scaled": (0.25, None), "soft-capped": (1.0, 5.0), "both": (0.5, 3.0)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("kind", HEADS)
def test_value_and_gradients(kind, count, bias):
    h_NC, targets_N, weight_VC, bias_V = made(count)
    factor, softcap = HEADS[kind]
    leaves = [h_NC.requires_grad_()] + ([bias_V.requires_grad_()] if bias else [])
    gradient_VC = torch.ones(VOCABULARY, WIDTH)
    ours = learned_loss(h_NC, targets_N, Head(weight_VC, bias_V if bias else None, factor, softcap), 0.1, gradient_VC)
    trained_VC = weight_VC.clone().requires_grad_()
    logits_NV = Head(trained_VC, bias_V if bias else None, factor, softcap).logits(h_NC)
    theirs = 0.1 * cross_entropy(logits_NV, targets_N, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(theirs, [*leaves, trained_VC])
    for one, other in zip(torch.autograd.grad(ours, leaves), expected[:-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient_VC, 1 + expected[-1], rtol=1e-4, atol=1e-5)  # added to what stood there


def test_what_is_multiplied_afterwards_reaches_the_hidden_states():
    h_NC, targets_N, weight_VC, _ = made(20)
    h_NC.requires_grad_()
    (once,) = torch.autograd.grad(learned_loss(h_NC, targets_N, Head(weight_VC, None, 1.0, None)), h_NC)
    (thrice,) = torch.autograd.grad(learned_loss(h_NC, targets_N, Head(weight_VC, None, 1.0, None)) * 3, h_NC)
    torch.testing.assert_close(thrice, 3 * once)


def test_nothing_learned_is_zero_with_a_gradient_of_zeros():
    h_NC, targets_N, weight_VC, _ = made(3)
    h_NC.requires_grad_()
    loss = learned_loss(h_NC[:0], targets_N[:0], Head(weight_VC, None, 1.0, None))
    assert loss.item() == 0 and loss.dtype == torch.float32
    loss.backward()
    assert h_NC.grad is not None and h_NC.grad.abs().max() == 0


def test_without_gradients_none_is_made():
    h_NC, targets_N, weight_VC, _ = made(40)
    expected = learned_loss(h_NC, targets_N, Head(weight_VC, None, 1.0, None)).item()
    gradient_VC = torch.zeros(VOCABULARY, WIDTH)
    with torch.no_grad():
        loss = learned_loss(h_NC.requires_grad_(), targets_N, Head(weight_VC, None, 1.0, None), 1.0, gradient_VC)
    assert loss.item() == expected and not loss.requires_grad and gradient_VC.abs().max() == 0


def test_a_frozen_head_makes_no_gradient_of_its_own(monkeypatch):
    """Two matmuls a position, logits and back to hidden states, and no third."""
    h_NC, targets_N, weight_VC, _ = made(16)
    sizes, mm = [], torch.mm

    def counting(a, b, **others):
        sizes.append((tuple(a.shape), tuple(b.shape)))
        return mm(a, b, **others)

    monkeypatch.setattr(torch, "mm", counting)
    learned_loss(h_NC.requires_grad_(), targets_N, Head(weight_VC, None, 1.0, None)).backward()
    assert sizes == [((16, VOCABULARY), (VOCABULARY, WIDTH))]


def test_never_more_logits_than_one_chunk(monkeypatch):
    h_NC, targets_N, weight_VC, _ = made(50)
    rows, logits = [], Head.logits

    def counting(head, h_NC):
        rows.append(len(h_NC))
        return logits(head, h_NC)

    monkeypatch.setattr(Head, "logits", counting)
    learned_loss(h_NC, targets_N, Head(weight_VC, None, 1.0, None))
    assert rows == [16, 16, 16, 2]


def test_bf16_is_summed_in_fp32():
    h_NC, targets_N, weight_VC, _ = made(50, torch.bfloat16)
    h_NC.requires_grad_()
    gradient_VC = torch.zeros(VOCABULARY, WIDTH)
    loss = learned_loss(h_NC, targets_N, Head(weight_VC, None, 1.0, None), 1 / 50, gradient_VC)
    loss.backward()
    exact_h, exact_w = h_NC.detach().float().requires_grad_(), weight_VC.float().requires_grad_()
    exact = cross_entropy(exact_h @ exact_w.T, targets_N)
    exact.backward()
    assert loss.dtype == torch.float32 and h_NC.grad is not None and h_NC.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, exact, rtol=5e-3, atol=0)
    torch.testing.assert_close(gradient_VC, exact_w.grad, rtol=0.05, atol=2e-3)
    torch.testing.assert_close(h_NC.grad.float(), exact_h.grad, rtol=0.05, atol=2e-3)


def test_targets_at_the_edges_of_the_vocabulary_and_huge_logits():
    weight_VC = torch.zeros(VOCABULARY, WIDTH)
    weight_VC[0], weight_VC[-1] = 1e4, -1e4
    h_NC = torch.ones(2, WIDTH, requires_grad=True)
    loss = learned_loss(h_NC, torch.tensor([0, VOCABULARY - 1]), Head(weight_VC, None, 1.0, None))
    assert loss.item() == pytest.approx(2e4 * WIDTH)
    loss.backward()
    assert h_NC.grad is not None and torch.isfinite(h_NC.grad).all()


def test_chunks_fit_their_budget(monkeypatch):
    monkeypatch.setattr(losses, "_BUDGET_BYTES", 64 * 1024**2)
    assert chunk_rows(49152, "cpu", trained=True) == 336 and 336 * 49152 * 4 <= 64 * 1024**2
    assert chunk_rows(49152, "cpu") == 80 and chunk_rows(151_936, "cpu") == 64, "no more than is as fast"
    assert chunk_rows(256_000, "cpu") == 64 and chunk_rows(10**9, "cpu") == 16
    assert chunk_rows(49152, "cuda") > chunk_rows(49152, "cpu") == chunk_rows(49152, "meta")


def test_the_same_number_from_a_classs_own_logits():
    h_NC, targets_N, weight_VC, _ = made(20)
    logits_TV, hidden_N = h_NC @ weight_VC.T, torch.tensor([3, 7, 7, 19])
    expected = 0.5 * cross_entropy(logits_TV[hidden_N], targets_N[:4], reduction="sum")
    torch.testing.assert_close(loss_of_logits(logits_TV, hidden_N, targets_N[:4], 0.5), expected)
    assert loss_of_logits(logits_TV, hidden_N[:0], targets_N[:0]).item() == 0
