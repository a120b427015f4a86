import numpy as np
import pytest

from tunesmith.evaluate.scored import difference, interval, mean, summed


def test_the_interval_of_a_share_is_the_binomials():
    scored = mean([1.0] * 70 + [0.0] * 30)
    low, high = interval(scored)
    deviation = (0.7 * 0.3 / 100) ** 0.5
    assert scored.value == 0.7
    assert low == pytest.approx(0.7 - 1.96 * deviation, abs=0.015)
    assert high == pytest.approx(0.7 + 1.96 * deviation, abs=0.015)
    assert interval(scored) == (low, high)  # the same draws every time


def test_a_ratio_of_sums_is_not_the_mean_of_ratios():
    scored = summed([0.0, 1.0], np.array([[0.0, 10.0], [1.0, 1.0]]), lambda sums_K: float(sums_K[0] / sums_K[1]), other=0.5)
    assert scored.value == pytest.approx(1 / 11)
    assert interval(scored) == (0.0, 1.0)
    assert scored.also == {"other": 0.5}


def test_pairing_sees_a_small_gain_that_two_intervals_hide():
    draw = np.random.default_rng(3)
    old_N = (draw.random(400) < 0.5).astype(float)
    new_N = old_N.copy()
    new_N[np.flatnonzero(old_N == 0)[:20]] = 1  # 20 rows better, none worse
    new, old = mean(new_N.tolist()), mean(old_N.tolist())
    value, (low, high) = difference(new, old)
    assert value == pytest.approx(0.05)
    assert 0 < low < 0.05 < high < 0.08
    assert interval(new)[0] < interval(old)[1]
    assert difference(old, new)[0] == pytest.approx(-0.05)


def test_differences_need_the_same_rows():
    with pytest.raises(ValueError, match="same rows"):
        difference(mean([1.0]), mean([1.0, 0.0]))
