import pytest

from tunesmith.data.resolve import resolve
from tunesmith.errors import UserError


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
        ("ms:someone/some-set", "fetches no data set from a hub"),
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
