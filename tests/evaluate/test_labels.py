from tunesmith.evaluate.labels import are_labels, label


def test_blanks_case_and_composition_do_not_make_another_label():
    assert label(" Card Arrival\n") == label("card arrival")
    assert label("cafe\u0301") == label("Café")


def test_few_short_texts_are_labels():
    assert are_labels(["pos", "neg"] * 5)
    assert are_labels([str(i) for i in range(200)] * 2)


def test_many_long_or_single_texts_are_not():
    assert not are_labels([str(i) for i in range(201)] * 3)
    assert not are_labels(["a", "b", "c"])  # more than half as many as rows
    assert not are_labels(["x" * 61, "y"] * 5)
    assert not are_labels(["", "y"] * 5)
    assert not are_labels([])
