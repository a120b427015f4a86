import gzip
import json

import pytest

from tunesmith.data.files.json_values import Decoder
from tunesmith.data.files.read import Row, read_rows, row_of_line
from tunesmith.data.files.recognise import Unreadable
from tunesmith.data.sample import BadRow, FileReport


def read(tmp_path, name, content, **how):
    """Rows as {line: values}, bad rows as {line: reason}, and the report."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    report = FileReport(name)
    rows = list(read_rows(path, f"data/{name}", report, **how))
    assert all(row.origin == f"data/{name}" for row in rows)
    good = {row.line: row.values for row in rows if isinstance(row, Row)}
    return good, {row.line: row.reason for row in rows if isinstance(row, BadRow)}, report


def test_jsonl_goes_on_behind_broken_lines(tmp_path):
    content = '\ufeff{"a": 1}\r\n\n{"a": 2,}\n{"a": 3} {"a": 4}\nnull\n[1]\n{}\n{"a": NaN}\n{"a": "\u2028"}\n' + "[" * 100_000 + '\n{"a": 5'
    good, bad, report = read(tmp_path, "a.jsonl", content)
    assert good == {1: {"a": 1}, 9: {"a": "\u2028"}}
    assert list(bad) == [3, 4, 5, 6, 7, 8, 10, 11]
    assert bad[5].startswith("null, not an object")
    assert bad[6].startswith("a list of 1, not an object")
    assert bad[10].startswith("nested too deeply")
    assert report.encoding == "utf-8-sig"


def test_jsonl_with_zero_bytes_at_the_end(tmp_path):
    good, bad, _ = read(tmp_path, "a.jsonl", b'{"a": 1}\n' + b"\x00" * 50)
    assert (good, list(bad)) == ({1: {"a": 1}}, [2])
    assert "50 zero bytes" in bad[2]


def test_json_array_rows_know_their_lines(tmp_path):
    rows = [{"a": "x\ny", "b": {"c": [1, 2]}}, {"a": "z"}, 7]
    good, bad, _ = read(tmp_path, "a.json", json.dumps(rows, indent=2))
    assert good == {2: rows[0], 11: rows[1]}
    assert bad == {14: 'the number 7, not an object: a row is {"name": value, ...}'}


def test_json_array_cut_short_keeps_what_was_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": "tw')
    rows = read_rows(path, "a.json")
    assert next(rows) == Row("a.json", 2, {"a": 1})
    with pytest.raises(Unreadable, match=r"a\.json:3: .*nothing after this place can be read"):
        next(rows)


def test_json_of_one_object_and_its_kinds(tmp_path):
    assert read(tmp_path, "a.json", '{"prompt": "a", "tags": []}')[0] == {1: {"prompt": "a", "tags": []}}
    assert read(tmp_path, "b.json", '{"messages": [{"role": "user"}]}')[0] == {1: {"messages": [{"role": "user"}]}}
    good, bad, report = read(tmp_path, "c.json", '\ufeff{"version": {"a": 1}, "data":\n[{"a": 1},\n{"a":\n2}, 7]\n, "b": 2}')
    assert good == {2: {"a": 1}, 3: {"a": 2}}
    assert list(bad) == [4]
    assert "under the key 'data'" in report.warnings[0]
    good, bad, _ = read(tmp_path, "h.json", '[{"data": [{"a": 1},\n{"a": NaN}]}]')
    assert (good, list(bad)) == ({1: {"a": 1}}, [2])
    assert list(read(tmp_path, "i.json", '{"a": 1, "a": 2}')[1]) == [1]
    one_row = {"prompt": "a", "labels": [{"slot": "x"}]}
    assert read(tmp_path, "g.json", json.dumps(one_row))[0] == {1: one_row}
    with pytest.raises(Unreadable, match=r"several lists of rows \(train, test\)"):
        read(tmp_path, "f.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}')
    path = tmp_path / "d.json"
    path.write_text('{"a": ["x", "y"], "b": ["1", "2"]}')
    assert list(read_rows(path, "d.json")) == [Row("d.json", 1, {"a": "x", "b": "1"}), Row("d.json", 1, {"a": "y", "b": "2"})]
    assert list(read(tmp_path, "e.json", '{\n"a": 1\n}\n{\n"a": 2\n}')[0]) == [1, 4]


def test_csv_lines_are_where_rows_begin(tmp_path):
    content = 'q,a\r\n"one\r\ntwo","say ""x"""\r\n\r\nNA,007\r\n"a,b",c\r\n'
    good, bad, _ = read(tmp_path, "a.csv", content)
    assert good == {2: {"q": "one\r\ntwo", "a": 'say "x"'}, 5: {"q": "NA", "a": "007"}, 6: {"q": "a,b", "a": "c"}}
    assert not bad


def test_csv_rows_of_wrong_width_are_named(tmp_path):
    good, bad, _ = read(tmp_path, "a.csv", "q,a\n1,2\n3\n4,5,6\n7,8\n")
    assert (list(good), list(bad)) == ([2, 5], [3, 4])
    assert bad[3] == "1 fields, but the header has 2 (q, a)"
    assert bad[4].startswith("3 fields, but the header has 2 (q, a); quote")


def test_csv_quote_that_is_never_closed(tmp_path):
    good, bad, _ = read(tmp_path, "a.csv", 'q,a\n1,2\n"3,4\n5,6\n7,8\n')
    assert (list(good), list(bad)) == ([2], [3])
    assert "never closed" in bad[3] and "line 5" in bad[3]


def test_csv_quote_in_the_middle_of_a_field_is_a_bad_row_only(tmp_path):
    good, bad, _ = read(tmp_path, "a.csv", 'q,a\n"x"y,2\nz,4\n')
    assert (list(good), bad) == ([3], {2: 'a quote stands in the middle of a quoted field: double it ("")'})


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_delimiter_is_recognised(tmp_path, delimiter):
    rows = [["label", "text"], ["1", '"a, b; c"'], ["2", '"d, e, f"']]
    assert read(tmp_path, "a.csv", "\n".join(delimiter.join(row) for row in rows))[0][3] == {"label": "2", "text": "d, e, f"}


def test_csv_of_one_column_and_of_excel(tmp_path):
    assert read(tmp_path, "a.csv", "text\nsome words\nmore\n")[0] == {2: {"text": "some words"}, 3: {"text": "more"}}
    assert read(tmp_path, "b.csv", "sep=;\nq;a\n1;2\n")[0] == {3: {"q": "1", "a": "2"}}
    assert read(tmp_path, "c.csv", "q,a\r1,2\r3,4\r")[0] == {2: {"q": "1", "a": "2"}, 3: {"q": "3", "a": "4"}}


def test_csv_longer_than_the_rows_looked_at_for_the_delimiter(tmp_path):
    good, bad, _ = read(tmp_path, "a.csv", "q,a\n" + "".join(f"{i},x{i}\n" for i in range(100)))
    assert list(good) == list(range(2, 102)) and not bad


def test_csv_field_of_a_megabyte(tmp_path):
    assert len(read(tmp_path, "a.csv", "q,a\n1," + "x" * 1_000_000 + "\n")[0][2]["a"]) == 1_000_000


def test_csv_header_with_equal_and_empty_names(tmp_path):
    good, _, report = read(tmp_path, "a.csv", ",text,text\n0,x,y\n")
    assert good == {2: {"column1": "0", "text": "x", "text.1": "y"}}
    assert report.warnings == ["two columns are called 'text': the later one is read as 'text.1'"]


@pytest.mark.parametrize("content", ["1,good\n0,bad\n", "How are you today?,fine thanks\nWho is it?,me\n", "x,pos\ny,pos\nz,pos\n"])
def test_csv_without_a_header_keeps_its_first_row(tmp_path, content):
    good, _, report = read(tmp_path, "a.csv", content)
    assert list(good) == list(range(1, content.count("\n") + 1))
    assert list(good[1]) == ["column1", "column2"]
    assert report.warnings[0].startswith("no header line")


def test_a_text_file_is_one_row(tmp_path):
    assert read(tmp_path, "a.txt", "one\r\n\r\ntwo\n")[0] == {1: {"text": "one\n\ntwo\n"}}


def test_what_a_row_of_a_text_is(tmp_path):
    text = "# A\none\n\n# B\ntwo\n"
    assert list(read(tmp_path, "a.md", text, documents="heading")[0].values()) == [{"text": "# A\none\n\n"}, {"text": "# B\ntwo\n"}]
    assert read(tmp_path, "a.txt", text, documents="heading")[0] == {1: {"text": text}}
    assert list(read(tmp_path, "a.txt", text, documents="line")[0]) == [1, 2, 4, 5]
    assert read(tmp_path, "a.jsonl", '{"text": "a\\nb"}', documents="line")[0] == {1: {"text": "a\nb"}}


def test_the_encoding_is_said_by_the_name_that_can_be_said_back(tmp_path):
    content = '{"a": "这家店的菜很好吃，我们都喜欢"}\n{"a": 1,}\n'.encode("gbk")
    good, bad, report = read(tmp_path, "a.jsonl", content)
    assert (good, list(bad), report.encoding) == ({1: {"a": "这家店的菜很好吃，我们都喜欢"}}, [2], "GB18030")
    assert report.warnings == ["read as GB18030, recognised by its characters (not UTF-8): if the text looks wrong, say data.encoding=NAME"]
    again = read(tmp_path, "a.jsonl", content, encoding="GB18030")
    assert (again[0], again[2].encoding, again[2].warnings) == (good, "GB18030", [])


@pytest.mark.parametrize("packed", [False, True])
def test_rows_inside_an_object_in_a_wide_encoding(tmp_path, packed):
    content = '{"version": 1,\n"data": [{"a": "é"},\n{"a": "中"}]}'.encode("utf-16")
    good, _, _ = read(tmp_path, "a.json", gzip.compress(content) if packed else content)
    assert good == {2: {"a": "é"}, 3: {"a": "中"}}


def test_row_of_line():
    decoder = Decoder()
    assert row_of_line("a.jsonl", 7, '\ufeff{"a": 1}\r\n', decoder) == Row("a.jsonl", 7, {"a": 1})
    assert row_of_line("a.jsonl", 8, " \n", decoder) is None
    broken = row_of_line("a.jsonl", 9, '{"a": }\n', decoder)
    assert isinstance(broken, BadRow) and (broken.origin, broken.line) == ("a.jsonl", 9)
