import pytest

from tunesmith.evaluate.metrics import macro_f1


def test_each_label_counts_alike():
    references = ["a"] * 8 + ["b"] * 2
    predictions = ["a"] * 8 + ["a", "b"]
    # a: 8 of 9 predicted and 8 of 8 expected; b: 1 of 1 and 1 of 2
    assert macro_f1.score(predictions, references).value == pytest.approx((16 / 17 + 2 / 3) / 2)


def test_an_unknown_answer_misses_its_label_only():
    references = ["a", "a", "b", "b"]
    assert macro_f1.score(["a", "?", "b", "b"], references).value == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1.score(["A ", "a", "b", "b"], references).value == 1
