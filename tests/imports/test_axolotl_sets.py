import pytest

from tunesmith.data.columns import parse
from tunesmith.imports import axolotl_sets
from tunesmith.imports.translation import Translation


def sets(*given):
    t = Translation("Axolotl", {"datasets": list(given)})
    axolotl_sets.datasets(t)
    return t


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"path": "a.jsonl"}, "a.jsonl"),
        ({"path": "json", "data_files": "a.jsonl", "ds_type": "json"}, "a.jsonl"),
        ({"path": "o/n"}, "o/n"),
        ({"path": "o/n", "name": "en", "split": "test"}, "o/n:en:test"),
        ({"path": "o/n", "split": "train[:500]"}, "o/n#500"),
        ({"path": "data/a.jsonl", "split": "train"}, "data/a.jsonl"),
    ],
    ids=str,
)
def test_where_a_data_set_lies(given, source):
    assert sets(given).settings["data.train"] == source


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({"type": "alpaca"}, {"data.format": "alpaca"}),
        ({"type": "sharegpt"}, {"data.format": "sharegpt"}),
        ({"type": "completion"}, {"task.name": "text", "data.format": "text", "data.on_overlength": "split"}),
        ({"type": "completion", "field": "body"}, {"data.columns": {"text": "body"}}),
        ({"type": "chat_template"}, {}),
        ({"type": "chat_template", "field_messages": "dialog"}, {"data.columns": {"messages": "dialog"}}),
        (
            {"type": "chat_template", "field_messages": "turns", "message_property_mappings": {"role": "from", "content": "value"}},
            {"data.columns": {"conversations": "turns"}},
        ),
        (
            {"type": "chat_template", "message_field_role": "from", "message_field_content": "value", "field_messages": "conversations"},
            {},
        ),
        (
            {"type": {"field_instruction": "q", "field_output": "a", "format": "{instruction}\nAnswer as {json}:"}},
            {"data.prompt": "{q}\nAnswer as {{json}}:", "data.columns": {"completion": "a"}},
        ),
        (
            {"type": {"field_instruction": "q", "field_input": "c", "field_output": "a"}},
            {"data.columns": {"instruction": "q", "input": "c", "output": "a"}},
        ),
        ({"type": {"field_output": "output"}}, {}),
    ],
    ids=str,
)
def test_types(kind, expected):
    t = sets({"path": "a.jsonl"} | kind)
    found = {key: value for key, value in t.settings.items() if key != "data.train"}
    assert expected.items() <= found.items() and bool(expected) == bool(found)
    parse(found.get("data.columns"), found.get("data.prompt"))  # names of ours, and braces that close


def test_what_is_left_is_listed():
    t = sets({"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "shards": 4, "type": "context_qa"})
    assert [line.partition(":")[0] for line in t.left] == ["datasets.0.data_files", "datasets.0.shards", "datasets.0.type"]
    t = sets({"path": "a.jsonl", "type": "chat_template", "message_field_role": "who"})
    assert t.left[0].startswith("datasets.0: turns with who and content: name these in a dataset_info.json")
    t = sets({"path": "a.jsonl", "type": {"format": "[INST] {instruction} [/INST]", "field_output": "a"}})
    assert "the model's own chat template stands in their place" in t.changed[0] and "data.prompt" not in t.settings


def test_data_sets_of_several_types():
    t = sets({"path": "a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "chat_template", "field_messages": "dialog"})
    assert "data.format" not in t.settings and "of several types" in t.changed[0]
    assert t.left == [
        "datasets.1: needs data.columns={messages: dialog}, which is said for all data or none: name this one in a dataset_info.json"
    ]
    both = sets({"path": "a.jsonl", "type": "alpaca"}, {"path": "b.jsonl", "type": "alpaca"})
    assert both.settings["data.format"] == "alpaca" and not both.left
