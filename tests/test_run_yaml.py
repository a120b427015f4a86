"""Values behind `KEY=` and in run files: what is a number, a truth value or a list, and what stays text."""

import pytest
import yaml

from tunesmith.errors import UserError
from tunesmith.run_yaml import flow, parse_value, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8), ("-3", -3), ("1_000", 1000), ("2e-4", 2e-4), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("true", True), ("False", False),
        ("null", None), ("~", None), ("", None), ("[a,b]", ["a", "b"]), ("[]", []), ("{a: b.c}", {"a": "b.c"}), ("[1, 2.5]", [1, 2.5]),
        ("{}", {}), ('"8"', "8"), ("'a b'", "a b"),
        # everything else is the text itself
        ("on", "on"), ("no", "no"), ("y", "y"), ("1:30", "1:30"), ("010", "010"), ("0x1f", "0x1f"), ("2024-01-31", "2024-01-31"),
        ("a.jsonl#500", "a.jsonl#500"), ("Rate #5", "Rate #5"), ("{question}", "{question}"), ("Question: {q}", "Question: {q}"),
        ("{q} and {r}", "{q} and {r}"), ("[INST] {q}", "[INST] {q}"), ("- a", "- a"), ("*x", "*x"), ("&x y", "&x y"), ("!t x", "!t x"),
        ("=", "="), ("<<", "<<"), ("a: b: c", "a: b: c"), ("builtin:tickets", "builtin:tickets"), ("ms:Qwen/Qwen3", "ms:Qwen/Qwen3"),
        ("C:\\data", "C:\\data"), ("{", "{"), ("e5", "e5"), ("1e", "1e"), ("%", "%"), ("a\nb", "a\nb"),
    ],
)  # fmt: skip
def test_values_as_written_behind_the_equals_sign(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_values_in_a_file(tmp_path):
    file = tmp_path / "RUN.yaml"
    file.write_text("a: no\nb: 2e-4\nc: [x, {d: 010}]\ne: &x 5\nf: *x\ng: 2024-01-31\n", encoding="utf-8")
    values, lines = read_yaml(file)
    assert values == {"a": "no", "b": 2e-4, "c": ["x", {"d": "010"}], "e": 5, "f": 5, "g": "2024-01-31"}
    assert lines == {"a": 1, "b": 2, "c": 3, "c.1.d": 3, "e": 4, "f": 5, "g": 6}


WRITTEN = [1, 2e-4, "2e-4", "no", "1:30", "010", "2024-01-31", None, "null", [1, "a"], {"a": "b: c"}, "Rate #5", "a\nb", "数据"]


@pytest.mark.parametrize("value", WRITTEN)
def test_what_is_written_is_read_back_by_this_reader_and_by_another(value):
    assert parse_yaml(f"key: {flow(value)}\n")[0] == {"key": value}
    assert yaml.safe_load(f"key: {flow(value)}\n") == {"key": value}


def test_a_file_that_is_no_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "RUN.yaml").write_text("train:\n\tsteps: 5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"RUN.yaml:2: not valid YAML.*indent with blanks"):
        read_yaml(tmp_path / "RUN.yaml")
    with pytest.raises(UserError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
