"""Mean over the labels of each label's F1, so that rare labels count as much as frequent ones.

Labels are read as in `accuracy`; those that the references use are averaged. An answer outside them misses its true
label and lowers no other label's precision.
"""

import numpy as np

from tunesmith.evaluate.labels import are_labels, label
from tunesmith.evaluate.scored import Scored, summed


def score(predictions: list[str], references: list[str]) -> Scored:
    column = {name: at for at, name in enumerate(dict.fromkeys(map(label, references)))}
    sums_N3L = np.zeros((len(references), 3, len(column)))  # matched, predicted, expected; of each label
    right = []
    for row, (ours, theirs) in enumerate(zip(map(label, predictions), map(label, references), strict=True)):
        sums_N3L[row, 2, column[theirs]] = 1
        if ours in column:
            sums_N3L[row, 1, column[ours]] = 1
        if ours == theirs:
            sums_N3L[row, 0, column[ours]] = 1
        right.append(float(ours == theirs))
    return summed(right, sums_N3L.reshape(len(references), 3 * len(column)), _macro)


def suits(references: list[str]) -> bool:
    return are_labels(references)


def _macro(sums_K: np.ndarray) -> float:
    matched_L, predicted_L, expected_L = sums_K.reshape(3, -1)
    asked_L = expected_L > 0  # a bootstrap draw may miss a label
    return float(np.mean(2 * matched_L[asked_L] / (predicted_L + expected_L)[asked_L]))
