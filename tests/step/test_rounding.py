"""Rounding by chance: right on average, always to a neighbour, and the same again for the same seed."""

import math

import torch

from tunesmith.step.rounding import by_chance, noise

CPU = torch.device("cpu")


def test_it_is_right_on_average_where_ordinary_rounding_loses_everything():
    x = torch.full((200_000,), 1.0 + 1 / 1024)  # bf16 has 1 and 1 + 1/128 there
    rounded = by_chance(x, noise(0, 0, "w", CPU)).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 1 / 128}
    assert abs(rounded.mean().item() - x[0].item()) < 1e-4
    assert torch.equal(x.bfloat16().float(), torch.ones_like(x))


def test_every_number_goes_to_one_of_its_two_neighbours():
    torch.manual_seed(0)
    x = torch.randn(10_000) * torch.logspace(-30, 30, 10_000)
    rounded = by_chance(x, noise(0, 1, "w", CPU)).float()
    low = (x.view(torch.int32) & ~0xFFFF).view(torch.float32)  # towards zero
    high = ((x.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    assert ((rounded == low) | (rounded == high)).all() and (rounded == high).any() and (rounded == low).any()


def test_what_bf16_has_stays_and_what_is_not_finite_too():
    exact = torch.tensor([0.0, -0.0, 1.0, -3.5, 2.0**-100])
    assert torch.equal(by_chance(exact, noise(0, 0, "w", CPU)).float(), exact)
    hidden_nan = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32)  # a NaN that only lost bits make one
    odd = torch.cat([torch.tensor([math.inf, -math.inf, math.nan]), hidden_nan])
    rounded = by_chance(odd, noise(0, 0, "w", CPU)).float()
    assert rounded[0] == math.inf and rounded[1] == -math.inf and rounded[2:].isnan().all()


def test_the_stream_is_a_function_of_seed_step_and_name():
    def draw(seed, step, name):
        return torch.randint(0, 1 << 30, (8,), generator=noise(seed, step, name, CPU))

    assert torch.equal(draw(1, 2, "w"), draw(1, 2, "w"))
    others = [draw(2, 2, "w"), draw(1, 3, "w"), draw(1, 2, "v"), draw(12, 0, "w"), draw(1, 20, "w")]
    assert not any(torch.equal(draw(1, 2, "w"), other) for other in others)
