"""seqeval as the judge of entities: the same tags give the same precision, recall and F1, of all entities and of each type."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
    from seqeval.scheme import IOB2

from tunesmith.evaluate.metrics import entity_f1

pytestmark = pytest.mark.filterwarnings("ignore::seqeval.metrics.v1.UndefinedMetricWarning")

TAGS = ["O", "O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "B-ORG"))]
BIO = [tag for tag in TAGS if tag[0] in "OBI"]


def rows(tags):
    """Some rows of (found, expected), equally long."""
    return st.lists(
        st.integers(1, 9).flatmap(lambda n: st.tuples(*[st.lists(st.sampled_from(tags), min_size=n, max_size=n)] * 2)),
        min_size=1,
        max_size=6,
    )


def both(made):
    found, expected = [row[0] for row in made], [row[1] for row in made]
    return found, expected, entity_f1.score([" ".join(tags) for tags in found], [" ".join(tags) for tags in expected])


@settings(max_examples=150, deadline=None)
@given(rows(TAGS))
def test_every_sequence_of_tags_legal_or_not(made):
    """seqeval's default mode, that of conlleval."""
    found, expected, ours = both(made)
    if not any(tag != "O" for tags in [*found, *expected] for tag in tags):
        assert ours.value == 1, "seqeval calls nothing of nothing 0"
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what has no value
        assert ours.value == pytest.approx(f1_score(expected, found))
        if any(tag != "O" for tags in expected for tag in tags):
            assert ours.also["precision"] == pytest.approx(precision_score(expected, found))
            assert ours.also["recall"] == pytest.approx(recall_score(expected, found))
        theirs = classification_report(expected, found, output_dict=True, zero_division=0)
    for kind in ("PER", "LOC", "B-ORG"):
        if kind in ours.also:
            assert ours.also[kind] == pytest.approx(theirs[kind]["f1-score"])
            assert ours.also[f"{kind}.precision"] == pytest.approx(theirs[kind]["precision"])
            assert ours.also[f"{kind}.recall"] == pytest.approx(theirs[kind]["recall"])


@settings(max_examples=60, deadline=None)
@given(rows(BIO))
def test_strict_mode_says_the_same_of_legal_tags(made):
    """It differs only where an I- goes on with nothing, which it does not count as an entity."""
    made = [tuple(legal(tags) for tags in row) for row in made]
    found, expected, ours = both(made)
    if not any(tag != "O" for tags in [*found, *expected] for tag in tags):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert ours.value == pytest.approx(f1_score(expected, found, mode="strict", scheme=IOB2))


def legal(tags):
    """I- that goes on with nothing becomes B-."""
    result: list[str] = []
    for tag in tags:
        before = result[-1] if result else "O"
        result.append(f"B{tag[1:]}" if tag[0] == "I" and before[1:] != tag[1:] else tag)
    return result
