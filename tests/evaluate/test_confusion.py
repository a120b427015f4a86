from tunesmith.evaluate.confusion import Confusion, confusion


def test_rows_are_what_was_expected_and_columns_what_was_predicted():
    found = confusion(["a", "b", "b", "c"], ["a", "a", "b", "a"], ["a", "b", "c"])
    assert found == Confusion(("a", "b", "c"), [[1, 1, 1], [0, 1, 0], [0, 0, 0]], [0, 0, 0])


def test_written_answers_are_read_as_the_accuracy_reads_them_and_shown_as_first_written():
    found = confusion(["YES ", "perhaps", "no"], ["Yes", "yes", "no"])
    assert found == Confusion(("no", "Yes"), [[1, 0], [0, 1]], [0, 1])


def test_labels_of_a_head_that_differ_in_case_alone_are_two():
    assert confusion(["a", "A"], ["A", "A"], ["a", "A"]).counts_LL == [[0, 0], [1, 1]]


def test_a_large_table_is_not_small():
    labels = [str(i) for i in range(13)]
    assert not confusion(labels, labels, labels).is_small and confusion(labels[:12], labels[:12], labels[:12]).is_small
