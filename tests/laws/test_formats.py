"""What every format on the shelf keeps, run over the table, so that a new file is tested before its author writes a test."""

import ast
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.formats import FORMATS
from tunesmith.data.sample import ROLES, RowError, Sample

ROOT = Path(__file__).parents[2]

KEYS = ["role", "content", "from", "value", "name", "arguments", "function", "tool_calls", "weight", "type", "text"]
PLAIN: list[Any] = [None, True, False, 0, 1, 3.5, "", " ", "x", "user", "assistant", "tool", "system", "[]", "{}", '["x"]', [], {}]


def anything(chance: random.Random, depth: int = 4):
    """A JSON value, rich in what rows are made of."""
    kind = chance.randrange(5) if depth else 0
    if kind == 3:
        return [anything(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 4:
        return {key: anything(chance, depth - 1) for key in chance.sample(KEYS, chance.randrange(4))}
    return chance.choice(PLAIN)


def damaged(value, chance: random.Random):
    """The value with one place inside it replaced by anything."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.8:
        copy = value.copy()
        key = chance.choice(list(copy)) if isinstance(copy, dict) else chance.randrange(len(copy))
        copy[key] = damaged(copy[key], chance)
        return copy
    return anything(chance)


def example(name):
    """The first row of the module's own docstring."""
    text = FORMATS[name].__doc__ or ""
    begins = text.index("{")
    row, _ = json.JSONDecoder().raw_decode(re.sub(r"\n\s+", " ", text[begins:]))
    return row


@pytest.mark.parametrize("name", FORMATS)
def test_the_row_in_the_docstring_is_recognised_and_read(name):
    row = example(name)
    assert [other for other, module in FORMATS.items() if module.recognises(set(row), row)] == [name]
    sample = FORMATS[name].to_sample(row, "my.jsonl:7")
    assert sample.origin == "my.jsonl:7"
    assert set(row) <= set(FORMATS[name].COLUMNS)
    assert set(FORMATS[name].NEEDED) <= set(row)


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_is_a_sample_or_a_row_error(name):
    good = sum(is_sample(name, random.Random(seed)) for seed in range(1000))
    assert 20 < good < 980


def is_sample(name, chance):
    """Whether a damaged row was still read; what is read must be whole."""
    module = FORMATS[name]
    row = damaged(example(name), chance)
    if not isinstance(row, dict) or chance.random() < 0.3:
        row = {key: anything(chance) for key in chance.sample([*module.COLUMNS, "label", "other"], min(3, len(module.COLUMNS)))}
    module.recognises(set(row), row)
    try:
        sample = module.to_sample(row, "a:1")
    except RowError as error:
        assert str(error)
        return False
    assert isinstance(sample, Sample)
    assert bool(sample.messages) != (sample.text is not None)
    for message in sample.messages:
        assert message["role"] in ROLES
        assert isinstance(message["content"], str)
    assert not sample.messages or sample.messages[-1]["role"] == "assistant"
    return True


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field", ["needed", "blank"])
def test_a_row_without_what_is_learned_is_an_error(name, field):
    row = example(name)
    last = FORMATS[name].NEEDED[-1]
    changed = {key: value for key, value in row.items() if key != last} if field == "needed" else row | {last: ""}
    with pytest.raises(RowError):
        FORMATS[name].to_sample(changed, "a:1")


@pytest.mark.parametrize("name", FORMATS)
def test_the_row_is_not_changed(name):
    row = example(name)
    before = json.dumps(row)
    FORMATS[name].to_sample(row, "a:1")
    assert json.dumps(row) == before


@pytest.mark.parametrize("name", FORMATS)
def test_one_file_one_test_one_page(name):
    assert (ROOT / f"tests/data/formats/test_{name}.py").exists()
    page = (ROOT / f"docs/data/{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}")
    for column in FORMATS[name].COLUMNS:
        assert f"`{column}`" in page


def test_the_table_is_literal_and_whole():
    folder = ROOT / "tunesmith/data/formats"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(FORMATS)
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    assert {type(statement) for statement in tree.body} == {ast.Expr, ast.ImportFrom, ast.AnnAssign}
