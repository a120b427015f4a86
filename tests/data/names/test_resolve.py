import json

import pytest

from tunesmith.data.names import splits
from tunesmith.data.names.resolve import resolve
from tunesmith.errors import UserError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name in (
        "b.jsonl",
        "a.csv",
        "README.md",
        "deep/c.txt",
        "deep/d.jsonl.gz",
        "notes.docx",
        ".hidden.jsonl",
        "dataset_info.json",
        "x#1.jsonl",
    ):
        (tmp_path / "data" / name).write_text("x")
    return tmp_path


def names(source):
    return [file.name for file in resolve(source).files]


def test_a_file_keeps_its_name_as_written(folder):
    assert names("data/b.jsonl") == ["data/b.jsonl"]
    assert names("./data/b.jsonl") == ["./data/b.jsonl"]
    assert resolve("data/b.jsonl").rows is None


def test_a_part_of_a_file(folder):
    found = resolve("data/b.jsonl#500")
    assert ([file.name for file in found.files], found.rows) == (["data/b.jsonl"], 500)
    assert (names("data/x#1.jsonl"), resolve("data/x#1.jsonl").rows) == (["data/x#1.jsonl"], None)
    for source in ("data/b.jsonl#", "data/b.jsonl#0", "data/b.jsonl#-3", "data/b.jsonl#many"):
        with pytest.raises(UserError, match="how many rows"):
            resolve(source)


def test_a_folder_is_read_whole_and_what_is_left_out_is_said(folder):
    assert names("data/") == ["data/a.csv", "data/b.jsonl", "data/deep/c.txt", "data/deep/d.jsonl.gz", "data/x#1.jsonl"]
    notes = [file.notes for file in resolve("data").files]
    assert notes[1:] == [()] * 4
    assert notes[0] == ("left out of the folder: data/README.md, data/dataset_info.json, data/notes.docx",)


def test_globs(folder):
    assert names("data/*.jsonl") == ["data/b.jsonl", "data/x#1.jsonl"]
    assert names("data/**/*.txt") == ["data/deep/c.txt"]
    assert resolve("data/*.csv#7").rows == 7
    with pytest.raises(UserError, match="no file matches"):
        resolve("data/*.parquet")
    (folder / "data" / "[1].csv").write_text("x")
    assert names("data/[1].csv") == ["data/[1].csv"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("data/bb.jsonl", "data/bb.jsonl: no such file; did you mean 'data/b.jsonl'"),
        ("data/qwertyuiop.jsonl", "no such file in the folder 'data'"),
        ("date/b.jsonl", "there is no folder 'date'"),
        ("someone/some-set", "hf download someone/some-set --repo-type dataset"),
        (
            "someone/some-set:en#5",
            "some-set:en: no file here, not in the hub's cache, and the hub was not reached: HF_HUB_OFFLINE is set",
        ),
        ("https://example.com/a.jsonl", "download it first"),
        ("data/deep/../../empty", "no such file"),
    ],
)
def test_missing(folder, source, words):
    with pytest.raises(UserError) as error:
        resolve(source)
    assert words in str(error.value)


def test_an_empty_folder(folder):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no data file; known are \.jsonl"):
        resolve("empty")


def test_builtin_names():
    with pytest.raises(UserError, match=r"builtin:nothing: no such built-in data.*there are \w+"):
        resolve("builtin:nothing")


# --- names in data.info ---


@pytest.fixture
def book(folder):
    entries = {
        "support": {"file_name": "b.jsonl", "num_samples": 7},
        "whole": {"file_name": "deep"},
        "some": {"file_name": "*.jsonl"},
        "gone": {"file_name": "bb.jsonl"},
        "far": {"hf_hub_url": "someone/some-set", "subset": "en", "split": "test"},
        "b.jsonl": {"file_name": "a.csv"},
    }
    (folder / "data" / "dataset_info.json").write_text(json.dumps(entries))
    return folder


def test_a_name_is_read_beside_its_book(book):
    found = resolve("support")
    assert ([file.name for file in found.files], found.rows) == (["data/b.jsonl"], 7)
    assert resolve("support#3").rows == 3
    assert found.files[0].adapt == resolve("support").files[0].adapt is not None and found.files[0].documents == "line"
    assert names("whole") == ["data/deep/c.txt", "data/deep/d.jsonl.gz"] and names("some") == ["data/b.jsonl", "data/x#1.jsonl"]
    assert resolve("data/b.jsonl").files[0].adapt is None


def test_another_book(book):
    (book / "mine.json").write_text(json.dumps({"support": {"file_name": "data/a.csv"}}))
    assert [file.name for file in resolve("support", "mine.json").files] == ["data/a.csv"]
    with pytest.raises(UserError, match=r"data\.info: none\.json: no such file"):
        resolve("support", "none.json")


def test_a_path_counts_before_a_name_and_that_is_said(book):
    (book / "support").write_text("x")
    file = resolve("support").files[0]
    assert file.adapt is None and "support is a path here and also a name in data/dataset_info.json" in file.notes[-1]


def test_an_entry_whose_file_is_not_there(book):
    with pytest.raises(UserError, match=r"dataset_info\.json: gone: file_name: data/bb.jsonl: no such file; did you mean 'data/b.jsonl'"):
        resolve("gone")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("suport", "suport: no such file, and no data set of that name in data/dataset_info.json; did you mean 'support' (in data/"),
        ("tickts", "did you mean 'builtin:tickets' or"),
        ("qwertyuiop", "no data set of that name in data/dataset_info.json; a hub id is written OWNER/NAME"),
    ],
)
def test_the_nearest_names_of_all_kinds(book, source, words):
    with pytest.raises(UserError) as error:
        resolve(source)
    assert words in str(error.value)


def test_a_broken_book_that_nobody_named_is_said_where_nothing_is_found(folder):
    with pytest.raises(UserError, match=r"qwerty: no such file[^\n]*\ndata.info: data/dataset_info.json:1: not valid JSON"):
        resolve("qwerty")
    assert names("data/b.jsonl") == ["data/b.jsonl"]


# --- hubs ---


def test_hub_ids_and_entries_on_hubs_are_fetched(book, monkeypatch):
    asked = []

    def fetch(named, **rest):
        asked.append((str(named), rest))
        return book, splits.Choice(("data/b.jsonl", "data/a.csv"), ("left out: some",))

    monkeypatch.setattr("tunesmith.data.names.hub.fetch", fetch)
    found = resolve("ms:someone/some-set:en#5")
    assert found.rows == 5 and asked.pop() == ("ms:someone/some-set:en", {})
    assert [file.name for file in found.files] == ["ms:someone/some-set/data/b.jsonl", "ms:someone/some-set/data/a.csv"]
    assert [file.notes for file in found.files] == [("left out: some",), ()]
    found = resolve("far")
    assert asked.pop() == ("someone/some-set", {"subset": "en", "split": "test", "folder": ""})
    assert found.files[0].path == book / "data" / "b.jsonl" and found.files[0].adapt is not None
