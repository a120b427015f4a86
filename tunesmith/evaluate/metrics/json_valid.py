"""Share of answers that a strict JSON parser takes, of the kind that the reference is: an object or an array.

A fence (```json), a word before or after, NaN, a key that stands twice: not valid, since the program that reads the
answer would stumble there. Where a reference is no object and no array, any valid JSON will do.
"""

from tunesmith.evaluate.scored import Scored, mean
from tunesmith.evaluate.strict_json import container, mostly_json, parse


def score(predictions: list[str], references: list[str]) -> Scored:
    return mean([float(_valid(ours, container(theirs))) for ours, theirs in zip(predictions, references, strict=True)])


def suits(references: list[str]) -> bool:
    return mostly_json(references)


def _valid(text: str, kind: type | None) -> bool:
    try:
        value = parse(text)
    except ValueError:
        return False
    return kind is None or type(value) is kind
