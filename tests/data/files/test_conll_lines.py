import pytest

from tunesmith.data.files.conll_lines import looks_like, rows
from tunesmith.data.files.row import Row
from tunesmith.data.sample import BadRow


def read(text):
    """Sentences as {line: (tokens, tags)}, bad rows as {line: reason}."""
    found = list(rows(text.splitlines(keepends=True), "a.txt"))
    good = {row.line: (" ".join(row.values["tokens"]), " ".join(row.values["tags"])) for row in found if isinstance(row, Row)}
    return good, {row.line: row.reason for row in found if isinstance(row, BadRow)}


def test_sentences_and_their_lines():
    text = "-DOCSTART- -X- O O\n\nJapan NNP I-NP I-LOC\nwon VBD I-VP O\n\n\nThe\tDT\tI-NP\tO\nend\tNN\tI-NP\tO"
    assert read(text) == ({3: ("Japan won", "I-LOC O"), 7: ("The end", "O O")}, {})


def test_a_line_of_another_width_is_named_and_its_sentence_left_out():
    text = "a O\nb B-X\n\nc O\nd\ne O\n\nf O\ng O extra\nh\n\ni O\n"
    good, bad = read(text)
    assert good == {1: ("a b", "O B-X"), 12: ("i", "O")}
    assert bad == {
        5: "1 columns, but the other lines have 2: 'd'; the sentence around this line is left out",
        9: "3 columns, but the other lines have 2: 'g O extra'; the sentence around this line is left out",
        10: "1 columns, but the other lines have 2: 'h'; the sentence around this line is left out",
    }


def test_columns_that_count_the_tokens_and_comments_above_sentences():
    text = "# text = He lives\n1\tHe\tPRON\tO\n2\tlives\tVERB\tO\n\n# id 2\n1\t#tag\tX\tB-MISC\n"
    assert read(text) == ({2: ("He lives", "O O"), 6: ("#tag", "B-MISC")}, {})


def test_a_hash_may_be_a_token():
    assert read("# O\n1 O\nin O\n#sale B-X\n") == ({1: ("# 1 in #sale", "O O O B-X")}, {})


def test_white_space_may_be_a_token_between_tabs():
    assert read("a\tO\n\u3000\tO\nNew York\tB-LOC\n")[0] == {1: ("a \u3000 New York", "O O B-LOC")}
    assert list(read("a\tO\n\tO\nb\tO\n")[1]) == [2]


@pytest.mark.parametrize(
    "text",
    [
        "EU\tB-ORG\nrejects\tO\ncall\tO\n\nPeter\tB-PER\n",
        "EU NNP B-NP S-ORG\nrejects VB O O\ncall NN O O\n",
        "# comment\n\n-DOCSTART- O\n\na O\nb O\nc L-X\n",
        "a O\n" * 30 + "broken\n",
    ],
)
def test_columns_are_recognised(text):
    assert looks_like(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "We took vitamin B-12\nand\nlived\n",
        "two words\nmore words\nlast words\n",
        "text\tlabel\ngood film\tO\nbad film\tO\nfilm\tO\n",
        "a O\n",
        "token,tag\na,O\nb,O\nc,O\n",
        "# Title\n\nsome text\n",
        "a O\nb O\nc c\nd d\ne e\nf f\n",
    ],
)
def test_prose_and_tables_with_a_header_are_not_taken_for_columns(text):
    assert not looks_like(text)
