"""Parts merge into the whole exactly, also where one part has all the weight, and nothing is computed that nobody needs."""

import pytest
import torch

from tests.cards import CARD
from tunesmith.models.attention_kernels import CPU, of_candidate
from tunesmith.models.forest import forest_of
from tunesmith.models.merged_attention import merged


def drawn(*tokens: int, rows: int = 2, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, count, size, generator=generator).requires_grad_() for count in tokens]


@pytest.mark.parametrize("kernels", [CPU, of_candidate(CARD)], ids=["cpu", "card"])
def test_two_fronts_are_one_that_holds_both(kernels):
    q, k, v, k1, v1, k2, v2 = drawn(20, 20, 20, 4, 4, 7, 7)
    forest = forest_of((9, 3, 8), (-1, 0, 0))
    apart = merged(kernels, q, k, v, forest, [(k1, v1), (k2, v2)], 0.3)
    together = merged(kernels, q, k, v, forest, [(torch.cat([k1, k2], 1), torch.cat([v1, v2], 1))], 0.3)
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-6)
    direction, leaves = torch.randn(apart.shape), [q, k, v, k1, v1, k2, v2]
    for one, other in zip(torch.autograd.grad(apart, leaves, direction), torch.autograd.grad(together, leaves, direction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e3, -1e3])
def test_a_part_that_has_all_the_weight_or_none_makes_nothing_infinite(factor):
    q, k, v, front_k, front_v = drawn(12, 12, 12, 3, 3)
    with torch.no_grad():
        front_k.copy_(q[:, :3].abs() * factor)
        q.abs_()
    out = merged(CPU, q, k, v, forest_of((12,)), [(front_k, front_v)], 1.0)
    gradients = torch.autograd.grad(out.sum(), [q, k, v, front_k, front_v])
    assert all(torch.isfinite(each).all() for each in (out, *gradients))
    alone = merged(CPU, q, k, v, forest_of((12,)), [], 1.0)
    assert torch.equal(out, alone) == (factor < 0)


def test_only_what_needs_a_gradient_gets_one():
    q, k, v, front_k, front_v = drawn(20, 20, 20, 4, 4)
    forest = forest_of((9, 3, 8), (-1, 0, 0))
    out = merged(CPU, q.detach(), k.detach(), v.detach(), forest, [(front_k.detach(), front_v)], 0.3)
    (ours,) = torch.autograd.grad(out, [front_v], torch.ones_like(out))
    whole = merged(CPU, q, k, v, forest, [(front_k, front_v)], 0.3)
    (theirs,) = torch.autograd.grad(whole, [front_v], torch.ones_like(whole))
    assert torch.equal(ours, theirs)
