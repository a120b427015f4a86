"""What every format on the shelf keeps, run over the table, so that a new file is tested before its author writes a test."""

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data import shape
from tunesmith.data.formats import FORMATS
from tunesmith.data.formats.messages import check_turns
from tunesmith.data.sample import ROLES, RowError, Sample

ROOT = Path(__file__).parents[2]

TEXTS = ["", " ", "x", "user", "assistant", "tool", "system", "human", "gpt", "observation", "[]", "{}", '["x"]', "B-X", "O", "true"]
PLAIN = st.sampled_from([None, True, False, 0, 1, -1, 3.5, 10**20, *TEXTS])
KEYS = [
    "role",
    "content",
    "from",
    "value",
    "name",
    "arguments",
    "function",
    "tool_calls",
    "weight",
    "type",
    "text",
    "start",
    "end",
    "label",
]
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_leaves=6
)


@st.composite
def damaged(draw, value, depth=4):
    """The value with one place inside it left out, given twice or replaced by anything."""
    if isinstance(value, (dict, list)) and value and depth and draw(st.integers(0, 4)):
        copy = value.copy()
        key = draw(st.sampled_from(sorted(copy))) if isinstance(copy, dict) else draw(st.integers(0, len(copy) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, list):
                copy.insert(key, copy[key])
            case _:
                copy[key] = draw(damaged(copy[key], depth - 1))
        return copy
    return draw(ANYTHING)


@st.composite
def rows(draw, name):
    """Rows of a format, whole or damaged, and rows of its columns that hold anything."""
    row = example(name)
    for _ in range(draw(st.integers(0, 2))):
        row = draw(damaged(row))
        if not isinstance(row, dict):
            return {}
    columns = [*FORMATS[name].COLUMNS, "label", "other"]
    return draw(st.just(row) | st.dictionaries(st.sampled_from(columns), ANYTHING, max_size=4).map(lambda more: row | more))


def examples(name):
    """The rows of the module's own docstring."""
    text = re.sub(r"\n\s+", " ", re.sub(r"\n\n\S.*", "", (FORMATS[name].__doc__ or "").partition("\n\n")[2], flags=re.DOTALL))
    found, begins = [], text.find("{")
    while begins >= 0:
        row, end = json.JSONDecoder().raw_decode(text, begins)
        found.append(row)
        begins = text.find("{", end)
    return found


def example(name):
    return examples(name)[0]


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_in_the_docstring_are_recognised_and_read(name):
    for row in examples(name):
        assert [other for other, module in FORMATS.items() if module.recognises(set(row), row)] == [name]
        sample = FORMATS[name].to_sample(row, "my.jsonl:7")
        assert sample.origin == "my.jsonl:7"
        assert set(row) <= set(FORMATS[name].COLUMNS)
        assert shape.of_row(row) == name
    assert set(FORMATS[name].NEEDED) <= set(example(name))


@pytest.mark.parametrize("name", FORMATS)
def test_any_row_is_a_sample_or_a_row_error(name):
    counts: Counter[bool] = Counter()

    @settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(rows(name))
    def law(row):
        counts[is_sample(name, row)] += 1

    law()
    assert min(counts[True], counts[False]) > 10, counts


@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_row_with_an_answer_is_never_raw_text(data):
    name = data.draw(st.sampled_from([name for name in FORMATS if name != "text"]))
    row = data.draw(rows(name))
    for module in FORMATS.values():
        module.recognises(set(row), row)
    if set(FORMATS[name].NEEDED[-1:]) <= set(row):
        assert shape.of_row({"text": "t"} | row) != "text"


def is_sample(name, row):
    """Whether a damaged row was still read; what is read must be whole."""
    module = FORMATS[name]
    module.recognises(set(row), row)
    before = json.dumps(row)
    try:
        sample = module.to_sample(row, "a:1")
    except RowError as error:
        assert str(error)
        return False
    finally:
        assert json.dumps(row) == before
    assert isinstance(sample, Sample)
    assert bool(sample.messages) != (sample.text is not None)
    for message in (*sample.messages, *sample.rejected):
        assert message["role"] in ROLES
        assert isinstance(message["content"], str)
    if sample.messages:
        check_turns(list(sample.messages))
        assert sample.messages[-1]["role"] == "assistant"
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
