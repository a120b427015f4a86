import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.data.corpus import index as module
from tunesmith.data.corpus import store
from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.index import Index, make
from tunesmith.data.corpus.pieces import Picks, _Making, _samples
from tunesmith.data.sample import Sample
from tunesmith.data.sources import load_samples, understand
from tunesmith.errors import UserError


def row(number: int) -> dict[str, str]:
    return {"prompt": f"Question {number}", "completion": f"Answer {number}\u2028 ü"}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_of(folder: Path, *names: Any, **how: Any) -> Index:
    folder.mkdir(exist_ok=True)
    return make(open_sources([str(name) for name in names], understand(**how)), folder)


def read(index: Index, rows: Any) -> list[Sample]:
    """The samples of some rows, through the block that other processes would get."""
    chosen = np.array(rows, np.int64)
    return [sample for _, sample, _ in _samples(index.block(chosen, np.zeros(len(chosen), np.bool_)).parts, _Making())]


def kinds(folder: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet

    rows = [row(number) for number in range(20)]
    write(folder / "a.jsonl", rows)
    (folder / "b.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "c.csv").write_text(
        "prompt,completion\n" + "".join(f'"{r["prompt"]}\nmore","{r["completion"]}"\n' for r in rows), encoding="utf-8"
    )
    with gzip.open(folder / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([r | {"score": float("inf")} for r in rows]), folder / "e.parquet")
    (folder / "f.jsonl").write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in rows).encode("utf-16"))
    (folder / "g.txt").write_text("A text\u2028 of\n\ntwo paragraphs.\n")
    return sorted(folder.iterdir())


def test_rows_of_any_file_are_read_in_any_order(tmp_path):
    paths = kinds(tmp_path)
    index = make_of(tmp_path / ".cache", *paths)
    expected = [sample for path in paths for sample in load_samples(str(path))[0]]
    assert len(index.file_R) == len(expected) == 121 and not index.broken
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(expected))
    assert read(index, order) == [expected[number] for number in order]
    assert read(index, [5, 5, 100, 5]) == [expected[number] for number in (5, 5, 100, 5)]
    assert [report.encoding for report in index.reports] == [report.encoding for path in paths for report in load_samples(str(path))[1]]
    assert [file.ours for file in index.files if file] == [False, True, True, True, True, True, True]


def test_rows_of_their_own_files_are_not_copied(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(number) for number in range(50)])
    index = make_of(tmp_path / ".cache", path)
    assert {each.name for each in (tmp_path / ".cache").iterdir()} == {"index"} and index.bytes == path.stat().st_size - 50
    assert isinstance(index.begin_R.base, np.memmap) or isinstance(index.begin_R, np.memmap)


def test_blank_lines_are_no_rows_and_short_ones_are(tmp_path, monkeypatch):
    lines = ["", "5", " ", "\r", json.dumps(row(1)), "\t \r", "x\r", "  " + json.dumps(row(2)), "\x00", "", "7"]
    (tmp_path / "a.jsonl").write_bytes("\n".join([json.dumps(row(0)), *lines]).encode())
    expected, [report] = load_samples(str(tmp_path / "a.jsonl"), on_bad_row="skip")
    for chunk in (1, 7, 1 << 20):
        monkeypatch.setattr(module, "CHUNK", chunk)
        index = make_of(tmp_path / f".cache{chunk}", tmp_path / "a.jsonl")
        assert index.line_R.tolist() == [1, 3, 6, 8, 9, 10, 12] and len(index.line_R) == report.rows
        assert read(index, np.arange(7)) == expected


def test_the_index_is_found_again_and_not_made(tmp_path, monkeypatch):
    paths = kinds(tmp_path)
    first = make_of(tmp_path / ".cache", *paths)
    monkeypatch.setattr(module, "_index", None)
    second = make_of(tmp_path / ".cache", *paths)
    assert second.reports == first.reports and read(second, range(121)) == read(first, range(121))


def test_the_index_does_not_remember_where_the_data_stood(tmp_path, monkeypatch):
    """The same names and contents in another folder are the same data; the first folder may be gone by then."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.jsonl", [row(1), row(2)])
    monkeypatch.chdir(tmp_path / "one")
    make_of(tmp_path / "cache", "a.jsonl")
    monkeypatch.chdir(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert [sample.origin for sample in read(make_of(tmp_path / "cache", "a.jsonl"), [1, 0])] == ["a.jsonl:2", "a.jsonl:1"]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_copy_is_made_anew(tmp_path, damage):
    (tmp_path / "a.json").write_text(json.dumps([row(1), row(2)]))
    expected = read(make_of(tmp_path / ".cache", tmp_path / "a.json"), [0, 1])
    damage(tmp_path / ".cache" / "rows-0.jsonl")
    assert read(make_of(tmp_path / ".cache", tmp_path / "a.json"), [0, 1]) == expected


def test_a_copy_may_be_written_again_by_another_run(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([row(1), row(2)]))
    index = make_of(tmp_path / ".cache", tmp_path / "a.json")
    expected = read(index, [0, 1])
    os.utime(tmp_path / ".cache" / "rows-0.jsonl", (1, 1))
    assert read(index, [0, 1]) == expected
    (tmp_path / ".cache" / "rows-0.jsonl").unlink()
    with pytest.raises(UserError, match="changed or vanished"):
        read(index, [0, 1])


def test_bad_rows_of_other_kinds_are_told_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nHi,Yes.\nHi,Yes.,more\n,\nHi,\n")
    index = make_of(tmp_path / ".cache", tmp_path / "a.csv")
    _, [expected] = load_samples(str(tmp_path / "a.csv"), on_bad_row="skip")
    [report] = index.reports
    assert report.rows == len(report.bad) == expected.rows - len(index.file_R)
    assert {bad.line for bad in report.bad} <= {bad.line for bad in expected.bad}


def test_what_cannot_be_read_is_broken_each_for_its_reason(tmp_path):
    write(tmp_path / "a.jsonl", [row(1)])
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.json").write_text(json.dumps([row(1)])[:-9])
    (tmp_path / "d.csv").write_text("prompt,completion\n")
    write(tmp_path / "e.jsonl", [{"height": 1}])
    (tmp_path / "f.csv").write_text("height,width\n1,2\n")
    (tmp_path / "g.jsonl").write_text("\u3000\n", encoding="utf-8")
    for _ in range(2):  # the second time from the index
        index = make_of(tmp_path / ".cache", tmp_path)
        with pytest.raises(UserError) as caught:
            load_samples(str(tmp_path))
        assert index.broken == list(caught.value.problems) and [file is None for file in index.files] == [False] + [True] * 6
    assert not [path for path in (tmp_path / ".cache").iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_no_index(tmp_path, monkeypatch):
    """The run must not go on with a part of the rows; who calls says it in the user's words."""
    (tmp_path / "a.json").write_text(json.dumps([row(1), row(2)]))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make_of(tmp_path / ".cache", tmp_path / "a.json")
    assert not list((tmp_path / ".cache").iterdir())


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [row(1), row(2)])
    places = module.line_places

    def growing(path):
        yield from places(path)
        path.write_bytes(path.read_bytes() + b"{}\n")

    monkeypatch.setattr(module, "line_places", growing)
    with pytest.raises(UserError, match=r"a\.jsonl: changed or vanished"):
        make_of(tmp_path / ".cache", path)
    assert store.load(tmp_path / ".cache", "index", module.TYPES) is None


def test_each_file_is_read_once_and_rows_keep_their_order(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [row(number) for number in range(5)])
    index = make_of(tmp_path / ".cache", tmp_path)
    again = np.array([False, False, True, False, True, False])
    block = index.block(np.array([0, 3, 0, 7, 7, 1]), again)
    picks = [(part.number, part.rows) for part in block.parts if isinstance(part.rows, Picks)]
    found = [(number, rows.line_K.tolist(), rows.again_K.tolist(), rows.place_K.tolist()) for number, rows in picks]
    assert found == [(0, [1, 1, 2, 4], [False, True, False, False], [0, 2, 5, 1]), (1, [3, 3], [False, True], [3, 4])]
    samples = list(_samples(block.parts, _Making()))
    assert [(number, int(sample.origin[-1]), repeated) for number, sample, repeated in samples] == [
        (0, 1, False), (0, 4, False), (0, 1, True), (1, 3, False), (1, 3, True), (0, 2, False)
    ]  # fmt: skip
    assert block.size == sum(index.end_R[n] - index.begin_R[n] for n in (0, 3, 0, 7, 7, 1))
    assert index.block(np.zeros(0, np.int64), np.zeros(0, np.bool_)).parts == []
