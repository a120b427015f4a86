import pytest

from tunesmith.evaluate.metrics import accuracy


def test_labels_without_case_and_the_share_of_unknown_ones():
    scored = accuracy.score(["Yes", "no", "perhaps", "no"], ["yes", "no", "no", "yes"])
    assert scored.per_row == [1, 1, 0, 0]
    assert scored.value == 0.5
    assert scored.also == {"unknown": pytest.approx(0.25)}


def test_suits_labels():
    assert accuracy.suits(["yes", "no"] * 4)
    assert not accuracy.suits(["a sentence", "another one", "a third"])
