"""Whether two ways agree on drawn numbers."""

# mypy: disable-error-code="assignment,method-assign"

import pytest
import torch
from torch import nn

from tunesmith.models.parts import drawn


def test_the_same_shape_is_the_same_draw_whatever_else_is_drawn():
    state = torch.random.get_rng_state()
    first = drawn.normal((3, 4), torch.float32).clone()
    drawn.normal.cache_clear()
    assert torch.equal(drawn.normal((3, 4), torch.float32), first) and torch.equal(torch.random.get_rng_state(), state)


def test_a_stand_in_shares_attributes_but_no_places():
    module = nn.Linear(2, 2)
    module.forward = lambda x: x
    other = drawn.stand_in(module)
    other._parameters["weight"] = None
    assert module.weight is not None and other.in_features == 2 and "forward" not in vars(other)


@pytest.mark.parametrize(
    ("other", "agrees"), [(1.0, True), (1.0 + 1e-7, True), (1.0 + 1e-4, False), (float("nan"), False)], ids=["same", "digits", "off", "nan"]
)
def test_in_fp32_the_last_digits_may_differ(other, agrees):
    one = torch.ones(10)
    assert drawn.agree(lambda: one, lambda: one * other) == agrees


def test_below_fp32_a_few_roundings_may_differ():
    one = torch.ones(1000, dtype=torch.bfloat16)
    few, many = one.clone(), one.clone()
    few[:5] += 2**-8 * 2
    few[:5] = few[:5].clamp(max=1 + 2**-7)
    many[:500] = 1 - 2**-8
    assert drawn.agree(lambda: one, lambda: one.clone())
    assert not drawn.agree(lambda: one, lambda: many)
    assert not drawn.agree(lambda: one, lambda: one.float())


def test_a_class_that_raises_or_gives_something_else_is_another_one():
    def raises():
        raise TypeError("takes a gate")

    assert not drawn.agree(raises, lambda: torch.ones(1))
    assert not drawn.agree(lambda: (torch.ones(1), None), lambda: torch.ones(1))
    assert not drawn.agree(lambda: torch.ones(2), lambda: torch.ones(1))
