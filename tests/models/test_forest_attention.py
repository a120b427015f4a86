"""Attention over a forest against its definition, a T×T matrix of scores: values and every gradient."""

# mypy: disable-error-code="arg-type,call-arg"

from typing import Any

import pytest
import torch

from tests.cards import backward, forward
from tunesmith.models import attention_cpu, attention_cuda, attention_kernels, forest_attention
from tunesmith.models.forest import forest_of
from tunesmith.models.forest_attention import attend

NESTED = ((9, 4, 7, 1, 70, 3, 5, 6), (-1, 0, 1, 1, 0, -1, 5, 5))
SHAPES: dict[str, Any] = {
    "documents": ((9, 1, 0, 4, 14), ()),
    "many short ones": ((9, 1, 12, 4, 14, 30, 29, 17, 64, 63, 5), ()),
    "one long one": ((90,), ()),
    "nested": NESTED,
    "empty segments": ((4, 0, 3, 0, 2), (-1, 0, 1, 1, 0)),
    "a chain": ((3, 3, 3, 3), (-1, 0, 1, 2)),
}


def leaves(tokens: int, fronts: tuple[int, ...] = (), heads=4, kept=2, size=8, dtype=torch.float32) -> list[torch.Tensor]:
    """Queries, keys, values as a class hands them over ([T, H, E] in memory); keys and values of each front."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, rows, size, generator=generator).to(dtype).transpose(0, 1).requires_grad_()

    return [drawn(heads, tokens), *(drawn(kept, count) for count in (tokens, tokens, *(p for p in fronts for _ in range(2))))]


def pairs(parts: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(parts[::2], parts[1::2], strict=True))


def definition(given, forest, scale, window=None, softcap=None, sinks_H=None):
    """[T, H, E] in fp64: every token by the positions of its path."""
    q, k, v, *fronts = (tensor.double() for tensor in given)
    groups = q.shape[0] // k.shape[0]
    front_k, front_v = ([part for part in fronts[first::2]] for first in (0, 1))
    outs = []
    for segment, (begin, end) in enumerate(forest.segments):
        path = [slice(*forest.segments[s]) for s in (*forest.path(segment), segment)]
        keys = torch.cat([*front_k, *(k[:, at] for at in path)], 1).repeat_interleave(groups, 0)
        values = torch.cat([*front_v, *(v[:, at] for at in path)], 1).repeat_interleave(groups, 0)
        scores = (q[:, begin:end] @ keys.mT) * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        total = keys.shape[1]
        distance = torch.arange(total - (end - begin), total)[:, None] - torch.arange(total)
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        weights = scores.masked_fill(~seen, -torch.inf).exp()
        rest = 0 if sinks_H is None else sinks_H.double().exp().view(-1, 1, 1)
        outs.append((weights / (weights.sum(-1, keepdim=True) + rest)) @ values)
    return torch.cat(outs, 1).transpose(0, 1)


def compare(shape, fronts=(), tolerance=1e-5, **arguments):
    lengths, parents = shape
    names = ("window", "softcap", "sinks_H")
    given = leaves(sum(lengths), fronts, **{name: value for name, value in arguments.items() if name not in names})
    asked = {name: value for name, value in arguments.items() if name in names}
    ours = attend(*given[:3], forest_of(lengths, parents), pairs(given[3:]), 0.3, **asked)
    theirs = definition(given, forest_of(lengths, parents), 0.3, **asked)
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    assert ours.is_contiguous()
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    found, wanted = torch.autograd.grad(ours, given, direction.to(ours)), torch.autograd.grad(theirs, given, direction.double())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == given[0].dtype
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm() + 1e-12


@pytest.mark.parametrize("fronts", [(), (5,), (5, 1, 13)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_values_and_gradients_are_those_of_the_definition(shape, fronts):
    compare(shape, fronts)


@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (6, 2), (3, 1), (1, 1)])
def test_grouped_heads(heads, kept):
    compare(NESTED, (5,), heads=heads, kept=kept)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-12)])
def test_other_dtypes_within_their_noise(dtype, tolerance):
    compare(NESTED, (5,), tolerance, dtype=dtype)


SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])
SPECIAL: dict[str, dict[str, Any]] = {
    "a window that cuts the longest paths": {"window": 20},
    "a window that cuts all": {"window": 3},
    "a window of one": {"window": 1},
    "a window that reaches everything": {"window": 200},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks_H": SINKS},
    "all of them": {"window": 7, "softcap": 1.5, "sinks_H": SINKS},
}


@pytest.mark.parametrize("fronts", [(), (5,)], ids=str)
@pytest.mark.parametrize("arguments", SPECIAL.values(), ids=list(SPECIAL))
def test_windows_softcaps_and_sinks(arguments, fronts):
    """A window counts the positions of the path: what is shared and what stands in front among them."""
    compare(NESTED, fronts, **arguments)
    compare(SHAPES["empty segments"], fronts, **arguments)


def test_the_derivative_is_that_of_finite_differences():
    forest = forest_of((2, 1, 2, 1), (-1, 0, 0, -1))
    given = leaves(6, (2,), 2, 1, 4, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: attend(*tensors[:3], forest, pairs(list(tensors[3:])), 0.5), given)


def test_nothing_shared_is_computed_twice(monkeypatch):
    """One call of all queries that see a segment's keys, however many segments they stand in."""
    sizes, flash = [], attention_cpu._flash

    def counting(q, k, v, is_causal, scale):
        sizes.append((q.shape[1], k.shape[1]))
        return flash(q, k, v, is_causal, scale)

    monkeypatch.setattr(attention_cpu, "_flash", counting)
    attend(*leaves(90), forest_of((40, 2, 30, 18), (-1, 0, 0, 0)), [], 0.3)
    assert (50, 40) in sizes and sum(q * k for q, k in sizes) <= 90 * 90 - 40 * 50


def test_nothing_is_computed_for_what_needs_no_gradient():
    """In a model's first layer queries, keys and values may come from frozen weights alone."""
    q, k, v, front_k, front_v = leaves(28, (5,))
    forest = forest_of((9, 1, 4, 14), (-1, 0, 0, -1))
    frozen = [tensor.detach() for tensor in (q, k, v)]
    out = attend(*frozen, forest, [(front_k, front_v)], 0.3)
    direction = torch.randn(out.shape)
    ours = torch.autograd.grad(out, [front_k, front_v], direction)
    theirs = torch.autograd.grad(attend(q, k, v, forest, [(front_k, front_v)], 0.3), [front_k, front_v], direction)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not attend(*frozen, forest, [], 0.3).requires_grad


def test_without_kernels_the_keys_of_each_path_are_gathered(monkeypatch):
    monkeypatch.setattr(forest_attention, "kernels_for", lambda q, k: None)
    for shape in SHAPES.values():
        compare(shape, (5,))
        compare(shape, (), window=16)


@pytest.mark.parametrize("window", [None, 6, 30])
@pytest.mark.parametrize("fronts", [(), (5, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_all_stretches_of_a_depth_are_one_call_on_a_card(shape, fronts, window, monkeypatch):
    calls = []

    def counting(*given):
        calls.append(given[4])
        return forward(*given)

    card = attention_cuda.Candidate("a card", counting, backward, True, (0, 0), 1)
    monkeypatch.setattr(forest_attention, "kernels_for", lambda q, k: attention_kernels.of_candidate(card))
    compare(shape, fronts, window=window)
    if window is None:
        depths = {crossing.depth for crossing in forest_of(*shape).crossings}
        assert calls.count(True) == 1 and len(calls) == 1 + len(depths) + len(fronts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [64, 128])
def test_a_cards_own_kernels_give_the_definition(size):
    lengths, parents = NESTED
    given = [leaf.detach().cuda().requires_grad_() for leaf in leaves(sum(lengths), (5,), 8, 2, size, torch.bfloat16)]
    assert attention_kernels.kernels_for(given[0], given[1]) is not None
    ours = attend(*given[:3], forest_of(lengths, parents), pairs(given[3:]), size**-0.5)
    theirs = definition([leaf.cpu() for leaf in given], forest_of(lengths, parents), size**-0.5)
    torch.testing.assert_close(ours.cpu().double(), theirs, rtol=2e-2, atol=2e-2)
