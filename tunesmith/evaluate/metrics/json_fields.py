"""F1 over the fields of JSON answers: right fields over what was predicted (precision) and what was expected (recall).

A field is a path of keys with its value: `{"a": {"b": 1}, "c": "x"}` has `a.b = 1` and `c = "x"`. The elements of a list
are fields of the list's path, compared whole and without regard to order: an object in a list counts when all of it is
right, so values cannot be mixed between objects. The sums run over all rows (micro). An answer that is no strict JSON
has no fields; a reference that is none is one field, its whole text.
"""

from collections import Counter
from typing import Any

import numpy as np

from tunesmith.evaluate.scored import Scored, summed
from tunesmith.evaluate.strict_json import mostly_json, parse, spell


def score(predictions: list[str], references: list[str]) -> Scored:
    """`also` holds precision and recall."""
    counts = [_count(ours, theirs) for ours, theirs in zip(predictions, references, strict=True)]
    sums_NK = np.array(counts, dtype=np.float64).reshape(-1, 3)  # matched, predicted, expected
    matched, predicted, expected = sums_NK.sum(axis=0)
    precision = float(matched / predicted) if predicted else 0.0
    return summed([_f1(row_K) for row_K in sums_NK], sums_NK, _f1, precision=precision, recall=float(matched / max(expected, 1)))


def suits(references: list[str]) -> bool:
    return mostly_json(references)


def _f1(sums_K: np.ndarray) -> float:
    matched, predicted, expected = sums_K
    return float(2 * matched / (predicted + expected))


def _count(prediction: str, reference: str) -> tuple[int, int, int]:
    try:
        expected = Counter(_fields("", parse(reference)))
    except ValueError:
        expected = Counter([("", reference.strip())])
        predicted = Counter([("", prediction.strip())])
    else:
        try:
            predicted = Counter(_fields("", parse(prediction)))
        except ValueError:
            predicted = Counter()
    return (expected & predicted).total(), predicted.total(), expected.total()


def _fields(path: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        # a key may hold the separator itself, so keys stand in the path as JSON strings
        return [field for key, inner in value.items() for field in _fields(f"{path}.{spell(key)}", inner)]
    if isinstance(value, list) and value:
        return [(f"{path}[]", spell(inner)) for inner in value]
    return [(path, spell(value))]
