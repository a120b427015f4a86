import json

import pytest

from tunesmith.data.names import info
from tunesmith.errors import UserError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def found(setting="auto"):
    book = info.load(setting)
    return None if book is None else (str(book.path), list(book.entries))


def test_where_a_book_is_looked_for(here):
    assert found() is None
    write(here / "data" / "dataset_info.json", {"a": {"file_name": "a.json"}})
    assert found() == ("data/dataset_info.json", ["a"])
    write(here / "dataset_info.json", {"b": {"file_name": "b.json"}})
    assert found() == ("dataset_info.json", ["b"])
    assert found("data") == found("data/dataset_info.json") == ("data/dataset_info.json", ["a"])
    with pytest.raises(UserError, match=r"data\.info: nowhere: no such file"):
        info.load("nowhere")


def test_the_file_of_the_same_name_that_datasets_writes_is_no_book(here):
    write(here / "dataset_info.json", {"features": {"text": {"dtype": "string"}}, "splits": {"train": {"num_examples": 3}}})
    assert info.load() is None
    with pytest.raises(UserError, match="names no data sets"):
        info.load("dataset_info.json")


def test_a_book_that_is_no_json_is_named_with_its_line(here):
    write(here / "dataset_info.json", '{"a": {\n  "file_name": "a.json",}}')
    with pytest.raises(UserError, match=r"dataset_info\.json:2: not valid JSON"):
        info.load()


def entry(here, raw):
    return info.entry(info.Book(here / "dataset_info.json", {"mine": raw}), "mine")


def test_an_entry(here):
    found = entry(here, {"hf_hub_url": "o/n", "ms_hub_url": "m/n", "subset": "en", "split": "test", "folder": "f", "num_samples": 9})
    assert (found.kind, found.place, found.subset, found.split, found.folder, found.rows) == ("hf", "o/n", "en", "test", "f", 9)
    assert (entry(here, {"ms_hub_url": "m/n", "file_name": "x"}).kind, entry(here, {"file_name": "x"}).place) == ("ms", "x")


def test_every_misfit_at_once_with_the_nearest_name(here):
    inner = {"columns": {"promt": "q"}, "tags": {"usertag": 3}}
    with pytest.raises(UserError) as error:
        entry(here, {"file_nam": "a", "formatting": "sharegtp", "ranking": "yes", "num_samples": 0} | inner)
    words = [
        "no such key 'file_nam'; did you mean 'file_name'?",
        "formatting 'sharegtp'; did you mean 'sharegpt'?",
        "ranking is the text 'yes'; it is true or false",
        "num_samples is the number 0",
        "columns: no such key 'promt'; did you mean 'prompt'?",
        "tags: no such key 'usertag'; did you mean 'user_tag'?",
        "tags.usertag is the number 3, not a name",
    ]
    assert len(error.value.problems) == len(words)
    for problem, part in zip(error.value.problems, words, strict=True):
        assert part in problem and problem.startswith(f"{here / 'dataset_info.json'}: mine: ")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"script_url": "make.py"}, "script_url is a program that would be run"),
        ({"cloud_file_name": "s3://b/x"}, "cloud_file_name is no place that data is fetched from"),
        ({}, "says nowhere where the data is"),
        ({"file_name": "a", "split": "train[:10%]"}, "cuts a part out of a split"),
        ("a.json", "is the text 'a.json', not an object"),
    ],
)
def test_what_is_refused(here, raw, words):
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        entry(here, raw)
