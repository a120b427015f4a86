"""F1 over entities, all rows together: an entity is right when its type is and it begins and ends where it should.

An answer says its entities in one of three ways, and is read as its reference is:

    {"PER": ["Angela Merkel"], "LOC": ["Paris"]}    texts by type, as runs that write the answer learn it; compared as a multiset
    [[0, 13, "PER"], [22, 27, "LOC"]]               places in the text, as a tagger gives them
    B-PER I-PER O B-LOC                             a tag a word: BIO, IOB1 or BIOES

The sums are those of conlleval and of seqeval's default mode: an I- that goes on with nothing begins an entity. Where nothing is
expected and nothing is found the value is 1, not 0.
"""

from collections import Counter
from collections.abc import Hashable

import numpy as np

from tunesmith.data.formats.conll import TAG, decode
from tunesmith.evaluate.scored import Scored, summed
from tunesmith.evaluate.strict_json import parse, spell

Entities = Counter[tuple[str, Hashable]]  # (type, its place or its text)
WHOLE = ""  # type of a reference that says no entities: its whole text counts as one


def score(predictions: list[str], references: list[str]) -> Scored:
    """`also` holds precision and recall of all entities, and F1, precision and recall of every type in the references."""
    pairs = [_pair(ours, theirs) for ours, theirs in zip(predictions, references, strict=True)]
    counts = [((ours & theirs).total(), ours.total(), theirs.total()) for ours, theirs in pairs]
    sums_NK = np.array(counts, dtype=np.float64).reshape(-1, 3)  # matched, predicted, expected
    scored = summed([_f1(row_K) for row_K in sums_NK], sums_NK, _f1, **_shares(sums_NK.sum(axis=0)))
    for kind, sums_K in _by_type(pairs).items():
        scored.also[kind] = _f1(sums_K)
        scored.also.update({f"{kind}.{part}": share for part, share in _shares(sums_K).items()})
    return scored


def suits(references: list[str]) -> bool:
    """At least 80 % of the references say entities, and some say one."""
    found = [_read(text) for text in references]
    return any(found) and sum(entities is not None for entities in found) >= 0.8 * len(references)


def _f1(sums_K: np.ndarray) -> float:
    matched, predicted, expected = sums_K
    return float(2 * matched / (predicted + expected)) if predicted + expected else 1.0


def _shares(sums_K: np.ndarray) -> dict[str, float]:
    """Of nothing predicted everything is right, and of nothing expected everything is found."""
    matched, predicted, expected = (float(value) for value in sums_K)
    return {"precision": matched / predicted if predicted else float(not expected), "recall": matched / expected if expected else 1.0}


def _by_type(pairs: list[tuple[Entities, Entities]]) -> dict[str, np.ndarray]:
    """The sums of each type, in alphabetical order."""
    sums: dict[str, np.ndarray] = {}
    for ours, theirs in pairs:
        for place, entities in enumerate((ours & theirs, ours, theirs)):
            for (kind, _), count in entities.items():
                sums.setdefault(kind, np.zeros(3))[place] += count
    return {kind: sums[kind] for kind in sorted(sums) if kind != WHOLE and sums[kind][2]}


def _pair(prediction: str, reference: str) -> tuple[Entities, Entities]:
    """(found, expected)."""
    expected = _read(reference)
    if expected is None:
        return Counter([(WHOLE, prediction.strip())]), Counter([(WHOLE, reference.strip())])
    return _read(prediction) or Counter(), expected


def _read(text: str) -> Entities | None:
    """The entities that a text says, or None where it says none in any of the three ways."""
    tags = text.split()
    if tags and all(TAG.fullmatch(tag) for tag in tags):
        return Counter((entity.kind, (entity.start, entity.end)) for entity in decode(tags)[0])
    try:
        value = parse(text)
    except ValueError:
        return None
    if isinstance(value, dict) and all(
        isinstance(texts, list) and all(isinstance(each, str) for each in texts) for texts in value.values()
    ):
        return Counter((kind, spell(each)) for kind, texts in value.items() for each in texts)
    if isinstance(value, list) and all(_is_place(each) for each in value):
        return Counter((kind, (start, end)) for start, end, kind in value)
    return None


def _is_place(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and [type(part) for part in value] == [int, int, str]
