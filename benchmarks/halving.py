"""Which run comes next: successive halving over the learning rates and first values of a method on a data set.

    a quarter of the tokens    the default rate, 3 times and a third of it; further while the best stands at an end; then other first
                               values or sizes at the best rate
    half                       the two best of all
    all of them                the better one

Decided anew from what is known before each run, so that a sweep that was stopped goes on.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FACTORS = (1.0, 3.0, 1 / 3)  # times the default rate, in this order
BEYOND, FURTHEST = 3.0, 100.0  # how far the next rate is where the best is the last one, and how far from the default at most
# Settings tried besides the defaults, at the best rate of these.
OTHERS: dict[str, list[dict[str, Any]]] = {
    "freeze": [{"layers": 6}],
    "lora": [{"rank": 32}],
    "prompt": [{"init": "vocabulary"}, {"init": "random"}],
    "ptuning": [{"encoder": "lstm"}],
    "prefix": [{"init": "random"}],
    "ptuning_v2": [{"init": "random"}],
    "adapter": [{"variant": "houlsby"}, {"variant": "parallel"}],
}
FAILED = float("inf")  # a loss of runs that ended in an error, or whose loss was not finite


@dataclass(frozen=True, slots=True)
class Trial:
    """One run to make, or made."""

    dataset: str
    method: str
    settings: str  # JSON of the method's settings that are not its defaults
    learning_rate: float
    tokens: int


def pending(dataset: str, method: str, default_rate: float, tokens: int, loss: Callable[[Trial], float | None]) -> list[Trial]:
    """The runs that can be made next for a method on a data set, best first; [] where everything is known."""

    def trial(rate: float, settings: str = "{}", share: int = 4) -> Trial:
        return Trial(dataset, method, settings, float(f"{rate:.2g}"), tokens // share)

    rates = [trial(default_rate * factor) for factor in FACTORS]
    if missing := [each for each in rates if loss(each) is None]:
        return missing
    while True:  # further on while the best is the last one that was tried
        best, known = _best(rates, loss), [each.learning_rate for each in rates]
        if best.learning_rate == max(known):
            onward = trial(best.learning_rate * BEYOND)
        elif best.learning_rate == min(known):
            onward = trial(best.learning_rate / BEYOND)
        else:
            break
        if loss(best) == FAILED or not 1 / FURTHEST <= onward.learning_rate / default_rate <= FURTHEST:
            break
        if loss(onward) is None:
            return [onward]
        rates.append(onward)
    others = [trial(best.learning_rate, json.dumps(settings)) for settings in OTHERS.get(method, [])]
    if missing := [each for each in others if loss(each) is None]:
        return missing
    ranked = sorted([*rates, *others], key=lambda each: loss(each) or 0.0)
    halves = [trial(each.learning_rate, each.settings, 2) for each in ranked[:2] if loss(each) != FAILED]
    if missing := [each for each in halves if loss(each) is None]:
        return missing
    if not halves:
        return []
    best = _best(halves, loss)
    whole = trial(best.learning_rate, best.settings, 1)
    return [whole] if loss(whole) is None else []


def _best(trials: Iterable[Trial], loss: Callable[[Trial], float | None]) -> Trial:
    return min(trials, key=lambda trial: FAILED if (found := loss(trial)) is None else found)


def in_turn(each: Sequence[Callable[[], list[Trial]]]) -> Iterator[Trial]:
    """One run of each method after the other, so that all have their first results early. What is pending is asked anew each time."""
    while True:
        found = [trials[0] for ask in each if (trials := ask())]
        if not found:
            return
        for ask in each:
            if trials := ask():
                yield trials[0]


def planned_tokens(method: str, tokens: int) -> int:
    """Of all runs of a method on one data set, without rates further on."""
    return (len(FACTORS) + len(OTHERS.get(method, []))) * (tokens // 4) + 2 * (tokens // 2) + tokens
