import pytest

from tunesmith.data.names.splits import Named, choose, page, parse
from tunesmith.errors import UserError


def chosen(paths, source="o/n", configs=(), **asked):
    named = parse(source)
    assert named is not None
    return choose(paths, list(configs), named, **asked)


def test_ids():
    assert parse("o/n") == Named("o/n")
    assert parse("ms:o/n@v1:en:test") == Named("o/n", "ms:", "v1", ("en", "test"))
    assert str(parse("ms:o/n@v1:en:test")) == "ms:o/n@v1:en:test"
    assert [parse(name) for name in ("n", "a/b/c", "./a", "/a/b", "o/n:", "-o/n", "https://x/y")] == [None] * 7


def test_train_unless_another_split_is_named():
    paths = ["README.md", "train.jsonl", "dev.jsonl", "test.jsonl", "make.py"]
    found = chosen(paths)
    assert found.files == ("train.jsonl",)
    assert found.notes == ("o/n: split train taken (train.jsonl); left out: dev.jsonl, test.jsonl",)
    assert chosen(paths, "o/n:validation").files == chosen(paths, "o/n:dev").files == ("dev.jsonl",)
    assert chosen(paths, split="test").files == ("test.jsonl",)
    with pytest.raises(UserError, match="no subset or split 'tset'; there are the subsets none, the splits test, train, validation"):
        chosen(paths, "o/n:tset")


def test_shards_and_unusual_splits():
    paths = [f"data/{split}-0000{i}-of-00002.jsonl" for split in ("train_sft", "test_sft") for i in range(2)]
    assert chosen(paths, "o/n:train_sft").files == ("data/train_sft-00000-of-00002.jsonl", "data/train_sft-00001-of-00002.jsonl")
    assert chosen(paths, split="test_sft").files[0].startswith("data/test_sft")
    with pytest.raises(UserError, match="no split 'train'; there are test_sft, train_sft: choose one, such as o/n:test_sft"):
        chosen(paths)


def test_files_that_name_no_split_are_train():
    assert chosen(["a.json", "b.json"]).files == ("a.json", "b.json")
    assert chosen(["a.json", "a_test.json"]).files == ("a.json",)
    assert chosen(["validation.json"]).files == ("validation.json",)
    with pytest.raises(UserError, match="no split 'test'; its files name no splits"):
        chosen(["a.json"], split="test")


def test_subsets_are_folders():
    paths = ["en/train.jsonl", "en/test.jsonl", "zh/train.jsonl"]
    with pytest.raises(UserError, match="several subsets, en, zh: choose one, such as o/n:en"):
        chosen(paths)
    assert chosen(paths, "o/n:zh").files == chosen(paths, subset="zh").files == ("zh/train.jsonl",)
    assert chosen(paths, "o/n:en:test").files == chosen(paths, "o/n:test:en").files == ("en/test.jsonl",)
    with pytest.raises(UserError, match="no subset 'fr'; there are en, zh"):
        chosen(paths, subset="fr")
    assert chosen(paths, folder="zh").files == ("zh/train.jsonl",)
    with pytest.raises(UserError, match="no file in its folder 'fr'"):
        chosen(paths, folder="fr")


def test_the_page_counts_before_names():
    configs = [
        {"config_name": "big", "data_files": [{"split": "train", "path": "big/*.jsonl"}, {"split": "test", "path": ["t/x.jsonl"]}]},
        {"config_name": "small", "data_files": "small/**", "default": True},
        {"config_name": "there_is_none", "data_files": "nowhere/*"},
    ]
    paths = ["big/1.jsonl", "big/2.jsonl", "small/deep/a.jsonl", "t/x.jsonl"]
    assert chosen(paths, configs=configs).files == ("small/deep/a.jsonl",)
    assert chosen(paths, "o/n:big", configs=configs).files == ("big/1.jsonl", "big/2.jsonl")
    assert chosen(paths, "o/n:big:test", configs=configs).files == ("t/x.jsonl",)


def test_the_same_rows_in_several_kinds_of_file_are_taken_once():
    found = chosen(["a.csv", "a.jsonl", "b.jsonl"])
    assert found.files == ("a.jsonl", "b.jsonl")
    assert "the .jsonl ones are taken, not .csv" in found.notes[-1]


def test_nothing_readable():
    with pytest.raises(UserError, match="holds no file that can be read; known are"):
        chosen(["README.md", "dataset.py", "model.bin"])


def test_the_page_s_table(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files: en/*\n---\n# Title\n")
    assert page(tmp_path / "README.md") == [{"config_name": "en", "data_files": "en/*"}]
    (tmp_path / "README.md").write_text("# Title\n---\nconfigs: []\n---\n")
    assert page(tmp_path / "README.md") == page(tmp_path / "none.md") == []
    (tmp_path / "README.md").write_text("---\n{: broken\n---\n")
    assert page(tmp_path / "README.md") == []
