"""chrF (Popović 2015): how many runs of 1 to 6 characters the answer shares with the reference; recall counts double.

For free text, in any language, Chinese too: it needs no words. Blanks are left out; the sums run over all rows and the
orders are averaged, as sacreBLEU does by default, here between 0 and 1.
"""

from collections import Counter

import numpy as np

from tunesmith.evaluate.labels import are_labels
from tunesmith.evaluate.scored import Scored, summed
from tunesmith.evaluate.strict_json import mostly_json

ORDERS = range(1, 7)
BETA = 2  # recall weighs BETA times as much as precision


def score(predictions: list[str], references: list[str]) -> Scored:
    counts = [_count(ours, theirs) for ours, theirs in zip(predictions, references, strict=True)]
    sums_NK = np.array(counts, dtype=np.float64).reshape(-1, 3 * len(ORDERS))
    return summed([_chrf(row_K) for row_K in sums_NK], sums_NK, _chrf)


def suits(references: list[str]) -> bool:
    return not mostly_json(references) and not are_labels(references)


def _count(prediction: str, reference: str) -> list[int]:
    """Matched, predicted and expected runs of each order."""
    ours, theirs = "".join(prediction.split()), "".join(reference.split())
    counts = []
    for order in ORDERS:
        predicted, expected = _runs(ours, order), _runs(theirs, order)
        counts += [(predicted & expected).total(), predicted.total(), expected.total()]
    return counts


def _runs(text: str, order: int) -> Counter[str]:
    return Counter(text[at : at + order] for at in range(len(text) - order + 1))


def _chrf(sums_K: np.ndarray) -> float:
    if not sums_K.any():
        return 1.0  # nothing expected and nothing said
    sums_O3 = sums_K.reshape(-1, 3)
    matched_O, predicted_O, expected_O = sums_O3[(sums_O3[:, 1] > 0) & (sums_O3[:, 2] > 0)].T
    if not matched_O.sum():
        return 0.0
    precision, recall = np.mean(matched_O / predicted_O), np.mean(matched_O / expected_O)
    return float((1 + BETA**2) * precision * recall / (BETA**2 * precision + recall))
