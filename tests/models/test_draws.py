"""Streams of random numbers by seed and name."""

import torch

from tunesmith.models.draws import seed_of, stream


def test_the_same_seed_and_name_are_the_same_numbers_and_others_are_others() -> None:
    first = torch.randn(8, generator=stream(3, "a.A"))
    assert torch.equal(first, torch.randn(8, generator=stream(3, "a.A")))
    assert not any(torch.equal(first, torch.randn(8, generator=other)) for other in (stream(4, "a.A"), stream(3, "b.A")))
    assert len({seed_of(seed, name) for seed in range(9) for name in "abc"}) == 27


def test_nobody_else_s_numbers_are_taken() -> None:
    before = torch.random.get_rng_state()
    torch.randn(8, generator=stream(0, "a"))
    assert torch.equal(torch.random.get_rng_state(), before)
