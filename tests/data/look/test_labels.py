from collections import Counter

import pytest

from tunesmith.data.look.labels import Answers, alike, beginnings, findings, one_letter_apart


def counted(*answers):
    found = Answers()
    for row, answer in enumerate(answers, start=1):
        found.add(row, row, answer)
    return found


def said(found, known=False):
    return [finding.said() for finding in findings(found, known)]


def test_short_answers_that_repeat_are_labels():
    assert counted(*["yes", "no"] * 4).labels() == {"yes": 4, "no": 4}
    assert counted("yes", "no", "perhaps").labels() == {}  # too few rows to tell
    assert counted("yes", "no", "perhaps").labels(known=True) == {"yes": 1, "no": 1, "perhaps": 1}
    assert counted(*["x" * 61, "y"] * 4).labels() == {}
    assert counted(*['{"a": 1}', "[]"] * 4).labels() == {}
    assert counted(*["yes", "no"] * 200, "a long answer that slipped in among the labels, which is no reason to take none for one").labels()
    assert counted(*["yes", "no"] * 4, None).labels() == {}  # a row with tool calls


def test_labels_that_are_one():
    counts = Counter(
        {"positive": 9, "Positive": 2, " positive": 1, "ｐositive": 1, "positive.": 1, "negative": 5, "NA": 1, "N/A": 1, "-": 1}
    )
    assert alike(counts) == [["positive", "Positive", " positive", "ｐositive", "positive."]]


def test_a_rare_misspelling_of_a_frequent_label_is_seen_with_both_counts():
    counts = Counter({"negative": 40, "negatve": 1, "postive": 2, "positive": 50, "negaitve": 3, "neutral": 9})
    assert one_letter_apart(counts) == [("negatve", "negative"), ("postive", "positive"), ("negaitve", "negative")]
    rows = [label for label, number in counts.items() for _ in range(number)]
    assert (
        "labels one letter apart, perhaps misspelt: 'negatve' 1 and 'negative' 40, 'postive' 2 and 'positive' 50"
        in said(counted(*rows))[-2]
    )


@pytest.mark.parametrize(
    "labels",
    [
        ("level_1", "level_2"),
        ("world", "word2x"),
        ("cat", "car"),
        ("order 10", "order 01"),
        ("card lost", "card stolen"),
        ("v1000", "v2000"),
    ],
)
def test_labels_that_are_two(labels):
    assert one_letter_apart(Counter(dict.fromkeys(labels, 5))) == []


def test_the_edit_distance_agrees_with_the_plain_algorithm():
    from itertools import product

    words = ["".join(letters) + "xyzzy" for letters in product("abc", repeat=3)]
    pairs = {frozenset((a, b)) for a, b in product(words, words) if one_letter_apart(Counter([a, b]))}
    expected = set()
    for a, b in product(words, words):
        differing = [n for n in range(8) if a[n] != b[n]]
        swapped = (
            len(differing) == 2
            and differing[1] == differing[0] + 1
            and a[differing[0]] == b[differing[1]]
            and a[differing[1]] == b[differing[0]]
        )
        if len(differing) == 1 or swapped:
            expected.add(frozenset((a, b)))
    assert pairs == expected


def test_many_labels_take_no_time():
    import time

    counts = Counter({f"intent number {n:05d} of many": 3 for n in range(5000)})
    start = time.perf_counter()
    assert one_letter_apart(counts) == [] and alike(counts) == []
    assert time.perf_counter() - start < 5


def test_shortened_labels():
    counts = Counter({"neg": 3, "negative": 5, "card": 2, "card_lost": 4, "cards": 1, "no": 2, "nothing": 1})
    assert beginnings(counts) == [("neg", "negative")]


def test_uneven_classes_and_labels_with_one_row():
    assert said(counted(*["a"] * 30, "b", *["c"] * 5)) == [
        "the answers are labels, 3 different: 'a' 30, 'c' 5, 'b' 1",
        "classes are uneven: 'a' has 83% of the rows, so that always answering it is right that often; the rarest, 'b', has 1 row",
        "1 label with one row only: 'b'",
    ]
    assert len(said(counted(*["a"] * 30, *["b"] * 20))) == 1


def test_a_large_number_of_answers_is_not_kept(monkeypatch):
    monkeypatch.setattr("tunesmith.data.look.labels.MOST", 10)
    found = counted(*map(str, range(100)))
    assert found.given_up and not found.counts and found.labels(known=True) == {}


def test_short_answers_among_long_ones():
    long = "an answer of many words that goes on for a while"
    many = [f"{long} {n}" for n in range(99)]
    assert said(counted(*many, ".")) == ["1 answer of 2 characters or fewer among long ones: line 100"]
    assert said(counted(*many, *["."] * 30)) == []
