import io
import json
import random
import sys

import pytest

from tunesmith.data.files import json_values
from tunesmith.data.files.json_values import BrokenJSON, Decoder, explain, values

CHARACTERS = 'ab"\\\n\t{}[],: é\u2028中😀\x00'


def any_value(chance: random.Random, depth: int = 3):
    kind = chance.randrange(8 if depth else 6)
    if kind == 6:
        return [any_value(chance, depth - 1) for _ in range(chance.randrange(4))]
    if kind == 7:
        return {any_text(chance): any_value(chance, depth - 1) for _ in range(chance.randrange(4))}
    return [
        None,
        chance.random() < 0.5,
        chance.randrange(-(2**70), 2**70),
        chance.uniform(-1e300, 1e300),
        any_text(chance),
        any_text(chance),
    ][kind]


def any_text(chance: random.Random) -> str:
    return "".join(chance.choices(CHARACTERS, k=chance.randrange(9)))


@pytest.mark.parametrize("seed", range(60))
def test_values_and_lines_of_any_array_with_any_chunk(seed, monkeypatch):
    chance = random.Random(seed)
    rows = [any_value(chance) for _ in range(chance.randrange(1, 7))]
    rendered = [json.dumps(row, indent=chance.choice([None, 1]), ensure_ascii=chance.random() < 0.5) for row in rows]
    monkeypatch.setattr(json_values, "CHUNK", chance.randrange(1, 40))
    text, lines = "[", []
    for index, row in enumerate(rendered):
        text += ("," if index else "") + "\n" * chance.randrange(3)
        lines.append(text.count("\n") + 1)
        text += row
    found = list(values(io.StringIO(text + "\n]\n")))
    assert [value.value for value in found] == rows
    assert [value.line for value in found] == lines


def test_values_one_after_another():
    found = list(values(io.StringIO('{"a": 1}\n{"a":\n2}\n\n{"a": 3}')))
    assert [(value.line, value.value["a"]) for value in found] == [(1, 1), (2, 2), (5, 3)]


@pytest.mark.parametrize("chunk", [3, 7, 1000])
def test_columns_count_from_the_line_whatever_the_chunk(chunk, monkeypatch):
    monkeypatch.setattr(json_values, "CHUNK", chunk)
    with pytest.raises(BrokenJSON, match=r"line 2: not valid JSON at column 18: .* found 'x"):
        list(values(io.StringIO('[{"a": 1},\n {"b": 2}, {"c": x}]                         ')))


def test_lines_in_a_file_of_carriage_returns():
    assert [value.line for value in values(io.StringIO('[\r{"a": 1},\r{"a": 2}\r]'), newline="\r")] == [2, 3]


@pytest.mark.parametrize(
    ("text", "good", "line", "words"),
    [
        ('[\n{"a": 1},\n{"a": 2', 1, 3, "cut short"),
        ('[\n{"a": 1},\n{"a": "2', 1, 3, "never closed"),
        ('[\n{"a": 1},\n', 1, 3, "before the array is closed"),
        ('[{"a": 1}\n{"a": 2}]', 1, 2, "no comma"),
        ('[{"a": 1},\n,{"a": 2}]', 1, 2, "a comma without a value"),
        ('[{"a": 1}]\n[{"a": 2}]', 1, 2, "follows the end of the array"),
        ('[\n{"a": 1,\n "b": 1,}]', 0, 3, "a comma before the closing bracket"),
        ("[" * 100_000, 0, 1, "nested too deeply"),
    ],
)
def test_broken_streams_name_the_line(text, good, line, words):
    found = []
    with pytest.raises(BrokenJSON) as error:
        for value in values(io.StringIO(text)):
            found.append(value)
    assert (len(found), error.value.line) == (good, line)
    assert words in error.value.reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ('{"b": {"a": 1, "a": 2}}', "key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e400}', "1e400 is too large"),
        ('{"a": "\\ud800"}', "half of a character"),
    ],
)
def test_flaws_that_the_parser_lets_pass(text, words):
    _, flaw = Decoder().line(text)
    assert words in flaw
    assert [bool(value.flaw) for value in values(io.StringIO(f'[{text}, {{"a": 1}}]'))] == [True, False]


def test_right_rows_have_no_flaw_and_keep_their_numbers():
    value, flaw = Decoder().line(' {"id": 9007199254740993, "smile": "\\ud83d\\ude00", "x": 1e300} ')
    assert (value, flaw) == ({"id": 9007199254740993, "smile": "😀", "x": 1e300}, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,}', "column 8: a comma before the closing bracket"),
        ("{'a': 1}", "Python dict literal"),
        ("{\"a\": 'x'}", "single quotes"),
        ("// a comment", "a comment"),
        ('{"a": 1} {"a": 2}', "column 10: something follows the value"),
        ('{"a": "x', "never closed"),
        ('{"a": 1', "cut short"),
        ('{"a": 0x10}', "found 'x10}'"),
    ],
)
def test_explain_names_column_and_cause(text, words):
    with pytest.raises(json.JSONDecodeError) as error:
        Decoder().line(text)
    assert words in explain(error.value, text, error.value.colno)


def test_a_number_of_too_many_digits_is_a_value_error_of_the_row():
    digits = "9" * (sys.get_int_max_str_digits() + 1)
    with pytest.raises(BrokenJSON, match="cannot be read"):
        list(values(io.StringIO(f'[{{"a": {digits}}}]')))
