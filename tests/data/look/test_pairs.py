from tunesmith.data.look.pairs import parted, with_rejected
from tunesmith.data.sample import Sample

USER, OTHER = {"role": "user", "content": "q"}, {"role": "user", "content": "r"}
OLD = {"role": "assistant", "content": "old", "learn": False}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


def test_an_answer_after_history():
    pair = Sample("a:1", (USER, OLD, OTHER, GOOD), rejected=(BAD,))
    assert parted(pair) == ((USER, OLD, OTHER), (GOOD,))
    assert with_rejected(pair) == Sample("a:1", (USER, OLD, OTHER, BAD))


def test_sides_of_several_turns():
    pair = Sample("a:1", (USER, GOOD, OTHER, GOOD), rejected=(BAD, OTHER, BAD))
    assert parted(pair) == ((USER,), (GOOD, OTHER, GOOD))
    assert with_rejected(pair).messages == (USER, BAD, OTHER, BAD)
