"""The processor's kernels: the operator for long segments, one plain product for short ones, both by the definition."""

# mypy: disable-error-code="call-arg,func-returns-value"

from typing import Any

import pytest
import torch

from tunesmith.models import attention_cpu
from tunesmith.models.attention_cpu import causal, causal_backward
from tunesmith.models.forest import forest_of

LENGTHS = (9, 14, 80, 16, 1, 0, 40, 33, 64, 65, 20)
TOKENS = sum(LENGTHS)


def drawn(heads=4, kept=2, size=8, dtype=torch.float32, lengths=LENGTHS) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(sum(lengths), rows, size, generator=generator).to(dtype).transpose(0, 1) for rows in (heads, kept, kept, heads)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kept"), [(4, 2), (3, 3), (6, 1)])
def test_short_segments_together_are_what_the_operator_makes_of_each(heads, kept, dtype, monkeypatch):
    q, k, v, gradient = drawn(heads, kept, dtype=dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5

    def both():
        forest = forest_of(LENGTHS)
        out, lse = causal(q, k, v, forest, 0.3)
        return [out, lse, *causal_backward(gradient.transpose(0, 1), q, k, v, out, lse, forest, 0.3)]

    together = both()
    monkeypatch.setattr(attention_cpu, "SHORT", 0)
    alone = both()
    for one, other in zip(together, alone, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()
    assert together[0].shape == (TOKENS, heads, 8) and together[0].is_contiguous() and together[1].shape == (heads, TOKENS)


def test_which_segments_are_computed_together():
    division = attention_cpu._division(forest_of(LENGTHS), 4, 2)
    assert sorted(end - begin for begin, end in division.alone) == [20, 64, 65, 80]  # too long, or the only one of about its length
    assert sorted(each.length for each in division.together) == [16, 40]
    assert len(division.tokens_M) == 9 + 14 + 16 + 1 + 40 + 33 == len(set(division.tokens_M.tolist()))
    filled = sum(int(each.filling.sum()) for each in division.together) // 4
    assert filled == (16 - 9) + (16 - 14) + (16 - 1) + (40 - 33)


def test_the_division_is_made_once_a_row(monkeypatch):
    calls, divided = [], attention_cpu._divided
    monkeypatch.setattr(attention_cpu, "_divided", lambda *given: calls.append(1) or divided(*given))
    q, k, v, _ = drawn()
    forest = forest_of(LENGTHS)
    for _ in range(3):
        causal(q, k, v, forest, 0.3)
    assert len(calls) == 1


def test_short_segments_need_no_call_each(monkeypatch):
    calls, flash = [], attention_cpu._flash
    monkeypatch.setattr(attention_cpu, "_flash", lambda *given: calls.append(1) or flash(*given))
    lengths = (16,) * 62
    causal(*drawn(lengths=lengths)[:3], forest_of(lengths), 0.3)
    assert calls == []


def test_a_window_is_our_own_mistake():
    q, k, v, _ = drawn()
    with pytest.raises(AssertionError):
        causal(q, k, v, forest_of(LENGTHS), 0.3, 5)
