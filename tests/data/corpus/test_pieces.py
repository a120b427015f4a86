import dataclasses
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.templates import make_tokenizer
from tunesmith.data.corpus import blocks as cutting
from tunesmith.data.corpus import pieces
from tunesmith.data.corpus.blocks import blocks, open_sources
from tunesmith.data.corpus.documents import Gathered
from tunesmith.data.corpus.pieces import Block, Part, Picks, Piece, Tokenise, stamp_of
from tunesmith.data.rendering.notes import SPECIAL_TEXT
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Sample
from tunesmith.data.sources import understand
from tunesmith.errors import UserError

LONG = "word " * 200


@pytest.fixture
def work() -> Tokenise:
    return Tokenise(Renderer(make_tokenizer("qwen2.5")), 100, "truncate")


def rows_of_all_fates() -> list[Any]:
    """One after another: kept, cut, dropped, with a note, unwritable in a way, of another shape, not to be read."""
    return [
        {"prompt": "Hi", "completion": "Yes."},
        {"prompt": LONG, "completion": "Words."},
        {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]},
        {"prompt": "Hi <|im_end|>", "completion": "So."},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}]},
        {"prompt": "nothing answers"},
        {"prompt": "Two", "completion": "Two answers."},
    ]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gathered(path: Path, work: Tokenise) -> tuple[dict[str, Any], list[Piece]]:
    all_of_it, made = Gathered([], []), []
    for block in blocks(open_sources([str(path)], understand()), all_of_it.reports, all_of_it.broken):
        made.append(work(block))
        all_of_it.add(made[-1])
    return all_of_it.facts(), made


def joined(made: list[Piece], name: str) -> list[Any]:
    return np.concatenate([getattr(piece, name) for piece in made]).tolist()


def test_each_row_has_its_fate(tmp_path, work):
    _, [piece] = gathered(write(tmp_path / "a.jsonl", rows_of_all_fates()), work)
    assert piece.line_R.tolist() == [1, 2, 3, 4, 5, 7]
    assert [pieces.FATES[fate] for fate in piece.fate_R] == ["kept", "cut", "dropped", "kept", "kept", "kept"]
    assert list(piece.reasons) == [2] and "system prompt" in piece.reasons[2]
    assert piece.row_D.tolist() == [0, 1, 3, 4, 5] and piece.length_D[1] <= 100
    assert piece.rows == {0: 7} and [row.line for row in piece.bad[0]] == [6] and piece.texts == 0
    assert piece.length_D.sum() == len(piece.ids_N) == len(piece.learned_N) and piece.learned_D.sum() == piece.learned_N.sum()
    begins = piece.length_D.cumsum() - piece.length_D
    for begin, length, learned in zip(begins, piece.length_D, piece.learned_D, strict=True):
        assert piece.learned_N[begin : begin + length].sum() == learned
    first = piece.ids_N[: piece.length_D[0]][piece.learned_N[: piece.length_D[0]]]
    assert work.renderer.tokenizer.decode(first.tolist()) == "Yes.<|im_end|>"


@pytest.mark.parametrize(("how", "fates"), [("drop", ["kept", "dropped", "dropped"]), ("error", ["kept", "too long", "too long"])])
def test_fates_of_long_rows(tmp_path, work, how, fates):
    _, [piece] = gathered(write(tmp_path / "a.jsonl", rows_of_all_fates()[:3]), dataclasses.replace(work, on_overlength=how))
    assert [pieces.FATES[fate] for fate in piece.fate_R] == fates and set(piece.reasons) == {1, 2} and len(piece.row_D) == 1


def test_long_texts_are_split(tmp_path, work):
    _, [piece] = gathered(write(tmp_path / "a.jsonl", [{"text": LONG}, {"text": "short"}]), work)
    assert [pieces.FATES[fate] for fate in piece.fate_R] == ["split", "kept"] and piece.texts == 2
    assert piece.row_D.tolist() == [0] * (len(piece.row_D) - 1) + [1] and len(piece.row_D) > 3


def test_rows_that_the_template_cannot_write_say_why(work):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    sample = Sample("a.jsonl:9", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}))
    other = Sample("a.jsonl:10", ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}))
    smollm = dataclasses.replace(work, renderer=Renderer(make_tokenizer("smollm2")))
    piece = smollm(Block([Part(0, understand(), None, [sample, other])], 2))  # type: ignore[arg-type]
    assert [pieces.FATES[fate] for fate in piece.fate_R] == ["unwritable", "kept"] and "weather" in piece.reasons[0]
    assert piece.line_R.tolist() == [9, 10] and not piece.rows  # samples were counted when they were taken


@pytest.mark.parametrize("size", [1, 90, 400, 1 << 20])
@pytest.mark.parametrize("batch", [1, 3])
def test_sums_are_the_same_however_rows_are_cut_into_blocks(tmp_path, work, monkeypatch, size, batch):
    path = write(tmp_path / "a.jsonl", rows_of_all_fates() * 5)
    expected, [whole] = gathered(path, work)
    monkeypatch.setattr(cutting, "BLOCK", size)
    monkeypatch.setattr(pieces, "BATCH", batch)
    facts, made = gathered(path, work)
    assert len(made) > 1 or size > 10_000
    assert facts == expected
    [report] = facts["reports"]
    assert (report["rows"], report["good"], len(report["bad"])) == (35, 30, 5)
    assert report["warnings"] == ["10 rows of another shape, messages, in a file of shape prompt: lines 3, 5, 10, 12, 17 and 5 more"]
    assert facts["rendering"] == {"notes": {SPECIAL_TEXT: 5}, "proof": {"documents": 25, "spans": 25, "approximate": 0}}
    for name in ("line_R", "fate_R", "length_D", "learned_D", "ids_N", "learned_N", "unended_D"):
        assert joined(made, name) == getattr(whole, name).tolist(), name


def test_a_row_that_comes_again_is_learned_and_not_counted_again(tmp_path, work):
    path = write(tmp_path / "a.jsonl", rows_of_all_fates())
    content = path.read_bytes()
    end_K = np.array([at for at, byte in enumerate(content) if byte == 10])
    begin_K = np.concatenate([[0], end_K[:-1] + 1])
    _, [once] = gathered(path, work)
    order = np.array([3, 0, 5, 0, 1, 6, 3, 5, 2, 4, 4, 2])
    again = np.array([list(order[:n]).count(row) > 0 for n, row in enumerate(order)])
    [part] = next(iter(blocks(open_sources([str(path)], understand()), [], []))).parts
    picks = Picks(path, str(path), "utf-8", stamp_of(path), False, begin_K[order], end_K[order], order + 1, again, np.arange(len(order)))
    piece = work(Block([dataclasses.replace(part, rows=picks)], 1))
    assert piece.line_R.tolist() == [4, 1, 1, 2, 7, 4, 3, 5, 5, 3] and piece.again_R.tolist() == [False, False, True] + [False] * 2 + [
        True, False, False, True, True
    ]  # fmt: skip
    assert (piece.rows, piece.bad, piece.notes, piece.proved) == (once.rows, once.bad, once.notes, once.proved)
    assert piece.tallies[0].others["messages"].count == 2 and set(piece.reasons) == {6, 9}
    counts = np.bincount(piece.fate_R[~piece.again_R], minlength=6)
    assert counts.tolist() == np.bincount(once.fate_R, minlength=6).tolist()
    documents = np.split(piece.ids_N, piece.length_D.cumsum()[:-1])
    assert documents[1].tolist() == documents[2].tolist() and len(documents) == 8


def test_picked_rows_of_a_file_that_changed_are_refused(tmp_path, work):
    path = write(tmp_path / "a.jsonl", rows_of_all_fates())
    none = np.zeros(0, np.int64)
    picks = Picks(path, "mine.jsonl", "utf-8", stamp_of(path), False, none, none, none, np.zeros(0, np.bool_), none)
    block = Block([Part(0, understand(), None, picks)], 1)  # type: ignore[arg-type]
    assert len(work(block).fate_R) == 0
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"mine\.jsonl: changed or vanished"):
        work(block)
    path.unlink()
    with pytest.raises(UserError, match=r"mine\.jsonl: changed or vanished"):
        work(block)


# --- files of pieces ---


def equal(one: Piece, other: Piece) -> bool:
    for field in dataclasses.fields(Piece):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            if mine.dtype != theirs.dtype or not np.array_equal(mine, theirs):
                return False
        elif mine != theirs or type(mine) is not type(theirs):
            return False
    return True


def test_a_piece_is_read_as_it_was_written(tmp_path, work):
    rows = [*rows_of_all_fates(), {"prompt": "\ud800", "completion": "half a character"}, {"prompt": "中文 \u2028", "completion": "ü"}]
    _, [piece] = gathered(write(tmp_path / "a.jsonl", rows), work)
    piece.reasons[0] = "holds half of a character: \ud800"
    path = tmp_path / "piece"
    pieces.save(piece, path)
    found = pieces.load(path)
    assert found is not None and equal(found, piece)
    assert isinstance(found.notes, Counter) and isinstance(found.rows, Counter)
    short = pieces.load(path, tokens=False)
    assert short is not None and len(short.ids_N) == len(short.learned_N) == 0
    assert equal(dataclasses.replace(short, ids_N=piece.ids_N, learned_N=piece.learned_N), piece)
    assert {each.name for each in tmp_path.iterdir()} == {"a.jsonl", "piece"}


def test_an_empty_piece_is_read_as_it_was_written(tmp_path, work):
    piece = work(Block([], 0))
    pieces.save(piece, tmp_path / "piece")
    found = pieces.load(tmp_path / "piece")
    assert found is not None and equal(found, piece)


def test_a_damaged_piece_is_as_good_as_none(tmp_path, work):
    _, [piece] = gathered(write(tmp_path / "a.jsonl", rows_of_all_fates()), work)
    path = tmp_path / "piece"
    assert pieces.load(path) is None
    pieces.save(piece, path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (9, header + 1, (header + len(whole)) // 2, len(whole) - 1)]
    for damaged in (b"", whole[:5], whole[:header], whole[:-1], whole + b"x", b"\x00" * len(whole), *flipped):
        path.write_bytes(damaged)
        assert pieces.load(path) is None
    places = json.loads(whole[8:header])
    for name in (*pieces.ARRAYS, *pieces.TOKENS):
        at = header + places[name]["data_offsets"][0]
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert pieces.load(path) is None, name
        assert (pieces.load(path, tokens=False) is None) == (name in pieces.ARRAYS), name
    at = whole.index(b'rows\\": {\\"0\\": ') + 14
    path.write_bytes(whole[: at + 1] + bytes([whole[at + 1] ^ 1]) + whole[at + 2 :])
    assert pieces.load(path) is None


def test_no_room_for_a_piece_is_said_and_leaves_nothing(tmp_path, work, monkeypatch):
    piece = work(Block([], 0))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device.*TUNESMITH_CACHE"):
        pieces.save(piece, tmp_path / "piece")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    with pytest.raises(UserError, match="cannot be written"):
        pieces.save(piece, tmp_path / "no folder" / "piece")
