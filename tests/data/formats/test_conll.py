import json
from typing import Any

import pytest

from tests.shared import SHARED, needs, read
from tunesmith.data.columns import parse, rename
from tunesmith.data.formats.conll import AFTER_O, AFTER_OTHER, END_ALONE, MIXED, decode, joined, recognises, to_sample
from tunesmith.data.sample import RowError
from tunesmith.data.shape import of_row


def learned(tokens, tags, key="tags"):
    sample = to_sample({"tokens": tokens.split(), key: tags.split()}, "a:1")
    return sample.messages[0]["content"], json.loads(sample.messages[1]["content"]), sample.notes


def test_the_sentence_and_its_entities_in_order():
    tokens, tags = "Paris 's mayor Anne Hidalgo left Paris", "B-LOC O O B-PER I-PER O B-LOC"
    assert learned(tokens, tags) == (tokens, {"LOC": ["Paris", "Paris"], "PER": ["Anne Hidalgo"]}, ())
    answer = to_sample({"tokens": ["a", "é"], "tags": ["O", "B-X"]}, "a:1").messages[1]["content"]
    assert answer == '{"X":["é"]}'
    assert to_sample({"tokens": ["a"], "ner_tags": ["O"]}, "a:1").messages[1]["content"] == "{}"


@pytest.mark.parametrize(
    ("tags", "spans", "notes"),
    [
        ("B-A I-A O B-A B-A", [("A", 0, 2), ("A", 3, 4), ("A", 4, 5)], ()),  # IOB2
        ("I-A I-A O I-A B-A", [("A", 0, 2), ("A", 3, 4), ("A", 4, 5)], (AFTER_O,)),  # IOB1
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)], (AFTER_OTHER,)),
        ("B-A I-A E-A S-A O", [("A", 0, 3), ("A", 3, 4)], ()),  # BIOES
        ("B-A I-A L-A U-A O", [("A", 0, 3), ("A", 3, 4)], ()),  # BILOU
        ("B-A M-A E-A S-B O", [("A", 0, 3), ("B", 3, 4)], ()),  # BMES
        ("E-A S-A", [("A", 0, 1), ("A", 1, 2)], (END_ALONE,)),
        ("B-A E-A B-B I-B", [("A", 0, 2), ("B", 2, 4)], (MIXED,)),
        ("O O", [], ()),
        ("B-A-B I-A-B", [("A-B", 0, 2)], ()),
    ],
)
def test_schemes(tags, spans, notes):
    entities, found = decode(tags.split())
    assert [(entity.kind, entity.start, entity.end) for entity in entities] == spans
    assert found == notes


def test_the_illegal_is_read_the_sensible_way_and_said():
    assert learned("John Smith visited Paris .", "O I-PER O I-LOC O")[1:] == ({"PER": ["Smith"], "LOC": ["Paris"]}, (AFTER_O,))
    assert learned("New York City", "B-LOC I-ORG I-LOC")[1:] == ({"LOC": ["New", "City"], "ORG": ["York"]}, (AFTER_OTHER,))
    assert learned("Acme Inc", "E-ORG S-ORG")[1:] == ({"ORG": ["Acme", "Inc"]}, (END_ALONE,))
    assert learned("a b", "_ B-X")[1] == {"X": ["b"]}


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ("Angela Merkel , born", "Angela Merkel , born"),
        ("我 爱 北 京 。", "我爱北京。"),
        ("1 9 9 7 年 （ 日 ）", "1997年（日）"),
        ("我 爱 Python 编程", "我爱 Python 编程"),
        ("私 は カフェ に いる", "私はカフェにいる"),
        ("나는 서울에 산다", "나는 서울에 산다"),
        ("a b", "a b"),
    ],
)
def test_blanks_between_tokens(tokens, sentence):
    got, places = joined(tokens.split())
    assert got == sentence
    assert [got[start:end] for start, end in places] == tokens.split()


def test_an_entity_is_a_part_of_the_sentence():
    assert learned("住 在 北 京 市", "O O B-LOC I-LOC I-LOC")[:2] == ("住在北京市", {"LOC": ["北京市"]})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tokens": ["a"]}, r"no 'tags' \(the row has tokens\)"),
        ({"tags": ["O"]}, "no 'tokens'"),
        ({"tokens": [], "tags": []}, "'tokens' is empty"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens, but 1 in 'tags'"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "token 2 is empty"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "token 2 is the number 3"),
        ({"tokens": ["a", "b"], "ner_tags": [0, 3]}, "'ner_tags' are numbers whose names stand nowhere"),
        ({"tokens": ["a"], "tags": ["NN"]}, "tag 1 is the text 'NN'; tags are O"),
        ({"tokens": ["a"], "tags": [None]}, "tag 1 is null"),
        ({"tokens": "a b", "tags": ["O"]}, "'tokens' is a text that is no JSON list"),
    ],
)
def test_reasons(values, words):
    with pytest.raises(RowError, match=words):
        to_sample(values, "a:1")


def test_recognises():
    values: dict[str, Any]
    for values in (
        {"tokens": ["a"], "tags": ["O"]},
        {"tokens": '["a"]', "labels": '["B-X"]'},
        {"tokens": ["a"], "pos_tags": ["NN"], "ner_tags": [0]},  # named, then refused for its numbers
    ):
        assert recognises(set(values), values)
    for values in ({"tokens": ["a"], "tags": ["NN"]}, {"tokens": ["a"]}, {"tokens": "a", "tags": ["O"]}, {"text": "a", "tags": ["O"]}):
        assert not recognises(set(values), values)


def test_a_template_takes_the_sentence():
    row = {"tokens": ["In", "Paris"], "tags": ["O", "B-LOC"]}
    wanted = parse(None, "Places: {tokens}")
    renamed = rename(row, wanted, {})
    assert of_row(renamed, wanted) == "conll"
    assert [message["content"] for message in to_sample(renamed, "a:1").messages] == ["Places: In Paris", '{"LOC":["Paris"]}']
    assert rename({"tokens": [1, 2]}, wanted, {})["prompt"] == "Places: [1,2]"


@needs("msra_ner")
@pytest.mark.parametrize(("file", "rows"), [("msra_ner/test.txt", 1000), ("ncbi_disease/test.tsv", 940)])
def test_real_files(file, rows):
    samples, report = read(file)
    assert (report.format, report.good, report.bad) == ("conll", rows, [])
    text = (SHARED / file).read_text(encoding="utf-8")
    entities = [json.loads(sample.messages[1]["content"]) for sample in samples]
    assert sum(len(texts) for found in entities for texts in found.values()) == text.count("\tB-")
    for sample, found in zip(samples, entities, strict=True):
        assert sample.notes == ()
        assert all(text in sample.messages[0]["content"] for texts in found.values() for text in texts)


@needs("dirty")
def test_a_real_file_of_illegal_tags():
    samples, report = read("dirty/conll_bio_illegal.txt")
    assert [json.loads(sample.messages[1]["content"]) for sample in samples] == [
        {"PER": ["Smith"], "LOC": ["Paris"]},
        {"LOC": ["New", "City"], "ORG": ["York"]},
        {"ORG": ["Acme", "Inc"]},
    ]
    assert [note for note in (AFTER_O, AFTER_OTHER, END_ALONE) if any(note in warning for warning in report.warnings)] == [
        AFTER_O,
        AFTER_OTHER,
        END_ALONE,
    ]


def test_what_a_head_learns_from():
    row = {"tokens": ["Angela", "Merkel", "北", "京"], "tags": ["I-PER", "I-PER", "B-LOC", "_"], "prompt": "Who and where?"}
    sample = to_sample(row, "a:1")
    assert sample.source == "Angela Merkel 北京" and sample.words == ((0, 6), (7, 13), (14, 15), (15, 16))
    assert sample.entities == ((0, 13, "PER"), (14, 15, "LOC"))
    assert sample.messages[0]["content"] == "Who and where?\nAngela Merkel 北京"  # what is asked around it is no part of the source


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", ""),
        ("B-X I-X O", "IOB2"),
        ("I-X I-X O", "IOB1"),
        ("I-X B-X", "IOB1"),
        ("B-X I-Y", "IOB2"),  # IOB1 does not begin with B-
        ("B-X E-X", "BIOES"),
        ("S-X I-Y", "BIOES"),
        ("B-X L-X", "BILOU"),
        ("B-X M-X E-X", "BMES"),
    ],
)
def test_the_scheme_of_a_sentence(tags, found):
    assert to_sample({"tokens": ["x"] * len(tags.split()), "tags": tags.split()}, "a:1").scheme == found
