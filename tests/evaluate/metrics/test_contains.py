from tunesmith.evaluate.metrics import contains


def test_the_reference_may_stand_anywhere():
    predictions = ["It is  Paris, I think.", "London", "new\nyork city", "", "x"]
    references = ["paris", "Paris", "New York", "", ""]
    assert contains.score(predictions, references).per_row == [1, 0, 1, 1, 0]


def test_no_run_takes_it_by_itself():
    assert not contains.suits(["yes", "no"] * 4)
