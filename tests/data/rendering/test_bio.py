from tunesmith.data.rendering import bio, notes
from tunesmith.data.rendering.words import words_of

TEXT = "Angela Merkel visited Paris-Nord"
WORDS = words_of(TEXT)  # Angela Merkel visited Paris - Nord


def test_labels_and_types():
    assert bio.labels_for(["PER", "geo-loc"]) == ["O", "B-PER", "I-PER", "B-geo-loc", "I-geo-loc"]
    assert bio.types_in(bio.labels_for(["PER", "geo-loc"])) == ["PER", "geo-loc"]


def test_there_and_back():
    entities = [(0, 13, "PER"), (22, 27, "geo-loc"), (28, 32, "geo-loc")]
    tags, told = bio.tags_of(WORDS, entities)
    assert tags == ["B-PER", "I-PER", "O", "B-geo-loc", "O", "B-geo-loc"] and not told
    found = bio.tagged(TEXT, WORDS, tags)
    assert found.entities == tuple(entities) and found.words == ("Angela", "Merkel", "visited", "Paris", "-", "Nord")
    assert found.json(TEXT) == '{"PER":["Angela Merkel"],"geo-loc":["Paris","Nord"]}'


def test_what_words_cannot_say_is_told():
    assert bio.tags_of(WORDS, [(0, 9, "PER")]) == (["B-PER", "I-PER", "O", "O", "O", "O"], [notes.WIDENED])
    inner_and_outer = [(7, 13, "NAME"), (0, 13, "PER")]
    assert bio.tags_of(WORDS, inner_and_outer) == (["B-PER", "I-PER", "O", "O", "O", "O"], [notes.OVERLAPPING])
    one_word = [(0, 3, "A"), (3, 6, "B")]
    assert bio.tags_of(WORDS, one_word) == (["B-A", "O", "O", "O", "O", "O"], [notes.WIDENED, notes.UNTAGGED])
    assert bio.tags_of(WORDS, [(6, 7, "BLANK")]) == (["O"] * 6, [notes.UNTAGGED])


def test_labels_that_do_not_follow_one_another_are_read_as_they_are_meant():
    found = bio.tagged(TEXT, WORDS, ["I-PER", "B-PER", "I-LOC", "I-LOC", "O", "I-LOC"])
    assert found.entities == ((0, 6, "PER"), (7, 13, "PER"), (14, 27, "LOC"), (28, 32, "LOC"))
