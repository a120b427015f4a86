import gzip
import json

import pytest

from tunesmith.data.files.recognise import Unreadable, open_text, recognise

ROW = '{"text": "a"}\n'


def found(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return recognise(path, name)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", ROW * 2, "jsonl"),
        ("a.ndjson", ROW, "jsonl"),
        ("a.json", '[{"text": "a"}]', "json"),
        ("a.json", '{"text": "a"}', "json"),
        ("a.csv", "text,label\na,b\n", "csv"),
        ("a.tsv", "text\tlabel\na\tb\n", "csv"),
        ("a.txt", "words", "text"),
        ("a.txt", "[1] a footnote\nand more", "text"),
        ("a.md", "# Title", "text"),
        ("a.conll", "a O\n", "conll"),
        ("a.parquet", "PAR1", "parquet"),
        ("a.feather", "ARROW1", "arrow"),
        ("a.arrow", b"\xff\xff\xff\xff", "arrow"),
        ("a.pdf", "%PDF-1.7", "pdf"),
    ],
)
def test_the_name_says_the_kind(tmp_path, name, content, kind):
    result = found(tmp_path, name, content)
    assert (result.kind, result.warnings) == (kind, ())


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("a.json", ROW * 3, "jsonl", "JSON Lines"),
        ("a.json", '{"broken": \n' + ROW * 3, "jsonl", "JSON Lines"),
        ("a.jsonl", json.dumps([{"text": "a"}] * 3, indent=1), "json", "a JSON document"),
        ("a.jsonl", '[{"text": "a"}, {"text": "b"}]\n', "json", "a JSON document"),
        ("a.jsonl", json.dumps({"text": "a"}, indent=1), "json", "a JSON document"),
        ("a.txt", ROW * 3, "jsonl", "JSON Lines"),
        ("a.csv", ROW * 3, "jsonl", "JSON Lines"),
        ("rows", ROW * 3, "jsonl", "without a suffix"),
        ("a.jsonl", "PAR1", "parquet", "a Parquet table"),
        ("a.parquet", ROW * 3, "jsonl", "JSON Lines"),
        ("a.tsv", "We\tO\nsaw\tO\nRome\tB-LOC\n", "conll", "read as CoNLL columns"),
    ],
)
def test_the_content_counts_more_than_the_name_and_that_is_said(tmp_path, name, content, kind, words):
    result = found(tmp_path, name, content)
    assert result.kind == kind
    assert words in result.warnings[0]


def test_a_list_is_a_row_where_rows_follow(tmp_path):
    assert found(tmp_path, "a.jsonl", '[1, 2]\n{"text": "a"}\n').kind == "jsonl"


def test_encoding_line_ends_and_gzip(tmp_path):
    assert found(tmp_path, "a.jsonl", b"\xef\xbb\xbf" + ROW.encode()).encoding == "utf-8-sig"
    result = found(tmp_path, "a.tsv", "menü\tb\r\n1\t2\r\n".encode("utf-16"))
    assert (result.kind, result.encoding, result.called, result.newline) == ("csv", "utf-16", "UTF-16LE", "\n")
    with open_text(tmp_path / "a.tsv", result) as stream:
        assert list(stream) == ["menü\tb\r\n", "1\t2\r\n"]
    assert found(tmp_path, "a.csv", "a,b\r\n1,2\r\n").newline == "\n"
    assert found(tmp_path, "a.csv", "a,b\r1,2\r").newline == "\r"
    result = found(tmp_path, "a.jsonl", gzip.compress(ROW.encode()))
    assert result.gzip
    with open_text(tmp_path / "a.jsonl", result) as stream:
        assert stream.read() == ROW


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", 0, "empty (0 bytes)"),
        (b" \n\r\n\t\n", 0, "blank lines"),
        (b"\x00" * 100, 0, "zero bytes"),
        (b"<!DOCTYPE html><html></html>", 1, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 1, "git lfs pull"),
        (b"PK\x03\x04....", 0, "zip"),
        (b"PK\x03\x04....xl/workbook.xml", 0, "an Excel workbook (.xlsx): save the sheet as CSV"),
        (b"\xfd7zXZ\x00....", 0, "unxz"),
        (b"BZh9....", 0, "bunzip2"),
        (b"\x28\xb5\x2f\xfd....", 0, "zstd -d"),
        (gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar..."), 0, "tar xzf"),
        (b"\x1f\x8b\x08broken", 0, "gzip"),
        ('{"a": "é'.encode()[:-1], 1, "cut short"),
        (b"a\nmenu\n" + "Žluť".encode("cp1250"), 3, "byte 7 is not UTF-8; the file looks like"),
        ("中文的\n".encode() + "这家店的菜很好吃，我们都喜欢".encode("gb18030"), 2, "two encodings"),
    ],
)
def test_what_is_no_text_is_refused_with_the_reason(tmp_path, content, line, words):
    with pytest.raises(Unreadable) as error:
        found(tmp_path, "a.jsonl", content)
    assert (error.value.name, error.value.line) == ("a.jsonl", line)
    assert words in error.value.reason


def test_a_named_encoding_counts_and_is_checked(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("a;b\n€;2\n".encode("cp1252"))
    assert recognise(path, "a.csv", "Windows-1252").encoding == "cp1252"
    with pytest.raises(Unreadable, match=r"a\.csv:2: byte 4 is not utf-8 \(data\.encoding\)"):
        recognise(path, "a.csv", "utf-8")
    with pytest.raises(Unreadable, match="no encoding that Python knows; did you mean"):
        recognise(path, "a.csv", "windws-1252")


def test_unknown_kinds_missing_files_and_folders(tmp_path):
    with pytest.raises(Unreadable, match=r"named \.pdf, but this is not a PDF"):
        found(tmp_path, "a.pdf", "words")
    with pytest.raises(Unreadable, match=r"known are \.jsonl"):
        found(tmp_path, "a.data", "words")
    with pytest.raises(Unreadable, match="no such file"):
        recognise(tmp_path / "none.jsonl", "none.jsonl")
    with pytest.raises(Unreadable, match="a folder"):
        recognise(tmp_path, "here")
