import pytest

from tunesmith.methods.method import METHODS, learning_rates
from tunesmith.methods.rates import beyond, rate_at
from tunesmith.methods.settings import SETTINGS, Prefix, PTuningV2

RATES = {500: 1e-3, 2000: 1e-4}


@pytest.mark.parametrize(
    ("width", "rate"),
    [(500, 1e-3), (2000, 1e-4), (1000, 3.2e-4), (250, 2e-3), (4000, 5e-5)],
    ids=["low", "high", "between", "narrow", "wide"],
)
def test_between_and_beyond_the_known_widths(width, rate):
    assert rate_at(RATES, width) == rate


def test_one_known_width_is_scaled_both_ways():
    assert rate_at({1000: 1e-3}, 100) == 1e-2 and rate_at({1000: 1e-3}, 10_000) == 1e-4


def test_beyond_is_said():
    assert beyond(RATES, 500) == beyond(RATES, 1234) == ""
    assert "500 to 2,000 channels, this one has 4,096" in beyond(RATES, 4096) and "of 7 channels" in beyond({7: 1.0}, 8)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_falls_with_width(name):
    rates = learning_rates(SETTINGS[name]())
    assert [rate_at(rates, w) for w in (64, 576, 3072, 8192)] == sorted((rate_at(rates, w) for w in (64, 576, 3072, 8192)), reverse=True)


def test_a_table_of_keys_and_values_takes_larger_steps_than_an_encoder():
    assert (
        learning_rates(Prefix(encoder="none"))
        == learning_rates(PTuningV2())
        != learning_rates(Prefix())
        == learning_rates(PTuningV2(encoder="mlp"))
    )
