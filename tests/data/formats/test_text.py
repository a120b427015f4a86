import pytest

from tunesmith.data.formats.text import recognises, to_sample
from tunesmith.data.sample import RowError


def test_the_text_is_kept_as_it_is():
    sample = to_sample({"text": " a\n", "title": "T"}, "a:1")
    assert (sample.text, sample.messages) == (" a\n", ())


@pytest.mark.parametrize(("values", "words"), [({"text": " \n"}, "blank"), ({"text": None}, "null"), ({"title": "x"}, "no 'text'")])
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        to_sample(values, "a:1")


def test_text_beside_an_answer_is_no_raw_text():
    assert recognises({"text", "url", "timestamp"}, {})
    assert not recognises({"text", "label"}, {})
    assert not recognises({"text", "Category"}, {})
    assert not recognises({"title"}, {})
