from tunesmith.evaluate.metrics import exact_match


def test_blanks_around_and_composition_do_not_count_and_all_else_does():
    predictions = [" yes\n", "cafe\u0301", "Yes", "yes.", '{"b":1,"a":2}']
    references = ["yes", "café", "yes", "yes", '{"a":2,"b":1}']
    assert exact_match.score(predictions, references).per_row == [1, 1, 0, 0, 0]
    assert exact_match.score(predictions, references).value == 0.4
