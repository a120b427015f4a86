import json

import pytest

from tunesmith.imports.batch import Measured, measure, tokens_per_step
from tunesmith.imports.translation import Translation


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # 40 characters asked and 40 answered are 10 tokens each, and 5 for each message
    row = {"prompt": "q" * 40, "completion": "a" * 40}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 30)
    near = {"file_name": "rows.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "o/n"}, "near": near}))


def step(given, packed=False, **settings):
    t = Translation("Tool", given)
    t.settings |= settings
    tokens_per_step(t, "batch", 8, "length", 100, packed)
    return t


def test_packed_rows_are_full(rows):
    t = step({"batch": 2, "gradient_accumulation_steps": 3, "length": 512}, packed=True)
    assert (t.settings["train.tokens_per_step"], t.settings["data.max_length"]) == (3072, 512)
    assert "2 rows x 3 accumulated x 512 tokens of a packed row; for one device" in t.changed[0]


def test_rows_that_are_not_packed_are_measured(rows):
    t = step({"batch": 2, "gradient_accumulation_steps": 8}, **{"data.train": "rows.jsonl"})
    assert t.settings["train.tokens_per_step"] == 16 * 30 and "about 30 tokens of a row" in t.changed[0]
    assert step({}, **{"data.train": "rows.jsonl"}).origins["train.tokens_per_step"] == "Tool's default"


def test_without_the_data_the_product_is_a_bound(rows):
    t = step({"batch": 2}, **{"data.train": "gone.jsonl"})
    assert t.settings["train.tokens_per_step"] == 200 and "the longest row, which rows seldom reach" in t.changed[0]
    assert "(the data was not looked at: gone.jsonl: no such file" in t.changed[0]


def test_rows_are_counted(rows):
    t = Translation("Tool", {})
    t.settings["data.train"] = [{"source": "rows.jsonl"}, {"source": "near#10"}]
    seen = measure(t, 1024)
    assert seen == Measured((30, 10), 30.0)
    assert measure(t, 20) == Measured((30, 10), 20.0)  # longer rows are cut


@pytest.mark.parametrize("source", ["o/n", "ms:o/n:en", "far", "o/n#5"])
def test_nothing_is_fetched(rows, source, monkeypatch):
    monkeypatch.setattr("tunesmith.data.names.hub.fetch", lambda *_, **__: pytest.fail("fetched"))
    t = Translation("Tool", {})
    t.settings["data.train"] = source
    assert measure(t, 1024) == f"{source} lies on a hub"
