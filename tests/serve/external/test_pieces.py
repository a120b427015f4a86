"""Ids that a stream of texts does not tell are found again by their bytes."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_byte_tokenizer
from tunesmith.models.load import load_tokenizer
from tunesmith.serve.external.pieces import Pieces, _from_letters, _plain


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return load_tokenizer(folder)


@pytest.mark.parametrize("text", ["é", "机", "👩", "ab机", "\u00a0"])
def test_the_tokenizers_own_ids_come_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert Pieces(tokenizer).before(text, ids[-1], len(ids) - 1) == ids[:-1]


def test_another_split_is_found_by_how_many_there_are(tokenizer: Any) -> None:
    pieces = Pieces(tokenizer)
    whole = "机".encode()
    pieces._ids[whole[:2]] = 300  # a word of two bytes, which the tokenizer itself would not have written here
    pieces._longest = 2
    last = pieces._ids[whole[2:]]
    assert pieces.before("机", last, 1) == [300]
    assert pieces.before("机", last, 2) == [pieces._ids[whole[:1]], pieces._ids[whole[1:2]]]


def test_what_is_no_text_is_counted_and_shows_as_such(tokenizer: Any) -> None:
    pieces = Pieces(tokenizer)
    half = pieces._ids[b"\x80"]
    assert pieces.before("\ufffda", pieces._ids[b"b"], 2) == [half, half]
    assert pieces.before("a", pieces._ids[b"a"], 3) == [half] * 3
    assert tokenizer.decode([half]) == "\ufffd"


def test_the_two_ways_to_write_bytes() -> None:
    assert _from_letters("Ġhé") == b" h\xe9" and _from_letters("Ċ") == b"\n"
    assert _plain("<0xE4>") == b"\xe4" and _plain("▁a") == b" a"
