"""A metric's result, and how sure it is.

Every metric here is a function of sums over rows (correct rows; matched, predicted and expected fields; ...). That is
all a bootstrap needs: draw rows with replacement, add their sums, finish.

Shapes: N rows, K sums a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

DRAWS = 1000
SEED = 0  # a second evaluation of the same answers shows the same interval


@dataclass(frozen=True, slots=True)
class Scored:
    """One metric over all rows. `value` and `per_row` lie between 0 (worst) and 1."""

    value: float
    per_row: list[float]
    sums_NK: np.ndarray
    finish: Callable[[np.ndarray], float]  # sums over rows (K,) -> value
    also: dict[str, float] = field(default_factory=dict)  # what belongs to the value: precision, recall, ...


def summed(per_row: Sequence[float], sums_NK: np.ndarray, finish: Callable[[np.ndarray], float], **also: float) -> Scored:
    """A metric from its sums. Raises ValueError without rows: there is nothing to score."""
    if len(sums_NK) == 0:
        raise ValueError("no rows to score")
    return Scored(finish(sums_NK.sum(axis=0)), list(per_row), sums_NK, finish, also)


def mean(per_row: Sequence[float], **also: float) -> Scored:
    """A metric that is the mean of its rows."""
    sums_NK = np.stack([np.asarray(per_row, dtype=np.float64), np.ones(len(per_row))], axis=1)
    return summed(per_row, sums_NK, lambda sums_K: float(sums_K[0] / sums_K[1]), **also)


def interval(scored: Scored) -> tuple[float, float]:
    """95 % of the bootstrap's values lie in it. Where every row scores alike its width is 0: read the row count too."""
    return _middle([scored.finish(sums_K) for (sums_K,) in _draws(scored.sums_NK)])


def difference(new: Scored, old: Scored) -> tuple[float, tuple[float, float]]:
    """`new` minus `old` on the same rows, with the paired bootstrap's 95 % interval: both see the same draws."""
    if len(new.sums_NK) != len(old.sums_NK):
        raise ValueError("paired scores need the same rows")
    drawn = [new.finish(a_K) - old.finish(b_K) for a_K, b_K in _draws(new.sums_NK, old.sums_NK)]
    return new.value - old.value, _middle(drawn)


def _draws(*sums: np.ndarray) -> list[list[np.ndarray]]:
    """For each draw of N rows with replacement, the sums (K,) of every argument."""
    draw, rows = np.random.default_rng(SEED), len(sums[0])
    counts = (np.bincount(draw.integers(0, rows, rows), minlength=rows) for _ in range(DRAWS))
    return [[count_N @ sums_NK for sums_NK in sums] for count_N in counts]


def _middle(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
