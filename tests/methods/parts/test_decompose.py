"""Factors of matrices: exact, randomised, and those that make up for rounding. `oracle/test_peft_pissa.py` has peft judge."""

import pytest
import torch

from tunesmith.methods.parts.decompose import leading, loftq
from tunesmith.models import nf4


def matrix(out: int = 96, inner: int = 128, decay: float = 0.1) -> torch.Tensor:
    """Singular values that fall as those of trained matrices do."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(out, min(out, inner), generator=generator))
    v, _ = torch.linalg.qr(torch.randn(inner, min(out, inner), generator=generator))
    return u * torch.exp(-decay * torch.arange(min(out, inner))) @ v.T


def rounded(weight_OI: torch.Tensor) -> torch.Tensor:
    return nf4.rounded(weight_OI, True, torch.float32)


@pytest.mark.parametrize("shape", [(96, 128), (128, 64)])
def test_no_product_of_that_rank_is_nearer(shape):
    weight = matrix(*shape)
    b, a = leading(weight, 5, "exact", seed=0)
    assert b.shape == (shape[0], 5) and a.shape == (5, shape[1])
    values = torch.linalg.svdvals(weight)
    assert (weight - b @ a).norm().item() == pytest.approx(values[5:].norm().item(), rel=1e-4), "Eckart and Young"
    torch.testing.assert_close(b.norm(dim=0), values[:5].sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(a.norm(dim=1), values[:5].sqrt(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("decay", "niter", "tolerance"), [(0.1, 4, 1e-4), (0.1, 1, 1e-2), (0.02, 4, 5e-2)])
def test_randomised_factors_are_nearly_the_best(decay, niter, tolerance):
    weight = matrix(decay=decay)
    best, found = (leading(weight, 8, how, seed=1) for how in ("exact", niter))
    best_left, left = ((weight - b @ a).norm() for b, a in (best, found))
    assert best_left <= left * (1 + 1e-6) and left < best_left * (1 + tolerance)


def test_a_matrix_of_low_rank_is_found_whole():
    weight = torch.randn(80, 4) @ torch.randn(4, 70)
    b, a = leading(weight, 4, 1, seed=0)
    torch.testing.assert_close(b @ a, weight, rtol=1e-4, atol=1e-4)


def test_the_seed_alone_decides():
    weight = matrix(decay=0.02)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = leading(weight, 4, 1, 0), leading(weight, 4, 1, 0), leading(weight, 4, 1, 1)
    assert torch.equal(torch.get_rng_state(), before), "dropout of the run draws from this one"
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True)) and not torch.equal(one[0], other[0])


def test_fp32_whatever_comes_in_and_no_more_than_there_is():
    b, a = leading(matrix().bfloat16(), 3, 4, 0)
    assert b.dtype == a.dtype == torch.float32
    with pytest.raises(AssertionError):
        leading(matrix(96, 128), 97, "exact", 0)
    assert leading(matrix(96, 128), 96, 2, 0)[0].shape == (96, 96), "more columns than the matrix has are not looked at"


def test_loftq_comes_nearer_with_every_iteration_and_with_one_more_rounding():
    weight = matrix(128, 192, decay=0.02)

    def left(update: torch.Tensor, codes_of: torch.Tensor) -> float:
        return ((weight - rounded(codes_of) - update).norm() / weight.norm()).item()

    plain = left(torch.zeros_like(weight), weight)
    updates = [b @ a for b, a in (loftq(weight, 8, rounded, iterations, 0) for iterations in (1, 2, 5))]
    errors = [left(update, weight - update) for update in updates]
    assert plain > errors[0] > errors[1] > errors[2]
    assert errors[0] < left(updates[0], weight), "as the paper leaves it: codes of the whole matrix, update of their error"


def test_loftq_of_a_large_matrix_is_nearly_the_best(monkeypatch):
    weight = matrix(128, 192, decay=0.02)
    exact = loftq(weight, 8, rounded, 1, 0)
    monkeypatch.setattr("tunesmith.methods.parts.decompose.EXACT_UP_TO", 64)
    b, a = loftq(weight, 8, rounded, 1, 0)
    lost = weight - rounded(weight)
    assert (lost - b @ a).norm() < (lost - exact[0] @ exact[1]).norm() * (1 + 1e-3)
