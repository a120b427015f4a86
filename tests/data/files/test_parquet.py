import datetime
import decimal
import gzip
import json
import math
import sys

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from tunesmith.data.files.read import read_rows
from tunesmith.data.files.row import Row, Unreadable
from tunesmith.data.sample import BadRow, FileReport


def read(path):
    report = FileReport(path.name)
    found = list(read_rows(path, path.name, report))
    good = {row.line: row.values for row in found if isinstance(row, Row)}
    return good, {row.line: row.reason for row in found if isinstance(row, BadRow)}, report


def write(path, columns, metadata=None):
    table = pyarrow.table(columns)
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    pyarrow.parquet.write_table(table, path)
    return path


def test_cells_become_what_json_would_hold(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        {
            "text": pyarrow.array(["one", None]).dictionary_encode(),
            "messages": [[{"role": "user", "content": "é"}], []],
            "number": [2**62, -1],
            "share": [0.5, math.nan],
            "bytes": [b"plain \xc3\xa9", None],
            "day": [datetime.date(2024, 2, 29), None],
            "time": [datetime.datetime(2024, 2, 29, 12, 30), None],
            "price": [decimal.Decimal("1.10"), None],
            "map": pyarrow.array([[("k", 1)], []], type=pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "flag": [True, False],
        },
    )
    good, bad, report = read(path)
    assert (bad, report.encoding, report.warnings) == ({}, "parquet", [])
    assert good[1] == {
        "text": "one",
        "messages": [{"role": "user", "content": "é"}],
        "number": 2**62,
        "share": 0.5,
        "bytes": "plain é",
        "day": "2024-02-29",
        "time": "2024-02-29T12:30:00",
        "price": "1.10",
        "map": {"k": 1},
        "flag": True,
    }
    assert good[2]["share"] is None and good[2]["messages"] == [] and good[2]["number"] == -1


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": ["a", "b"], "image": [{"bytes": b"\x89PNG\xff"}, None]})
    good, bad, _ = read(path)
    assert good == {2: {"text": "b", "image": None}}
    assert bad == {1: "column 'image.bytes' holds 5 bytes that are no text (a picture, a sound?)"}


def test_classes_are_read_by_their_names(tmp_path):
    names = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    features = {
        "label": names,
        "tags": {"feature": names, "_type": "Sequence"},
        "older": [names],
        "inner": {"label": names, "text": {"dtype": "string", "_type": "Value"}},
        "rows": {"feature": {"label": names}, "_type": "Sequence"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    columns = {
        "label": [1, -1, 2],
        "tags": [[0, 1], [], []],
        "older": [[1], [], []],
        "inner": [{"label": 0, "text": "x"}] * 3,
        "rows": [{"label": [1, 0]}] * 3,
        "text": ["1", "2", "3"],
    }
    good, bad, report = read(write(tmp_path / "a.parquet", columns, features))
    assert good[1] == {
        "label": "pos",
        "tags": ["neg", "pos"],
        "older": ["pos"],
        "inner": {"label": "neg", "text": "x"},
        "rows": {"label": ["pos", "neg"]},
        "text": "1",
    }
    assert good[2]["label"] is None
    assert bad == {3: "column 'label' is 2, but its schema names the classes 0 to 1"}
    assert report.warnings == ["classes read by their names, not their numbers: label, tags, older, inner, rows"]


def test_the_content_says_what_it_is_whatever_the_name(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": ["a"]})
    assert read(path)[2].warnings == ["named .jsonl, but holds a Parquet table; read as that"]
    packed = tmp_path / "a.parquet.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed)[0] == {1: {"text": "a"}}


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_arrow_files_and_streams(tmp_path, compression):
    table = pyarrow.table({"text": [f"row {number}" for number in range(3000)]})
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression=compression)
    with pyarrow.ipc.new_stream(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.feather", "b.arrow"):
        good, _, report = read(tmp_path / name)
        assert (len(good), good[3000], report.encoding) == (3000, {"text": "row 2999"}, "arrow")


def test_a_damaged_table_is_said(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": ["a" * 100] * 100})
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(Unreadable, match=r"a\.parquet: broken: .*fetch it again"):
        read(path)
    path.write_text("no table at all")
    with pytest.raises(Unreadable, match=r"named \.parquet, but this is not a Parquet table"):
        read(path)


def test_two_columns_of_one_name_are_said(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Unreadable, match="several columns are called 'text'"):
        read(tmp_path / "a.parquet")


def test_without_pyarrow_the_cure_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"text": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unreadable, match="pip install pyarrow"):
        read(path)
