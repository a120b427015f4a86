import gzip

import pytest

from tunesmith.data.files.decoding import decode
from tunesmith.data.files.row import Unreadable

CHINESE = "这家店的菜很好吃，我们都喜欢，下次还会再来的。\n"
TAIWANESE = "這家店的菜很好吃，我們都喜歡，下次還會來的。\n"
FRENCH = "Le garçon a été très content d’être là, même après l’été.\n"


def found(tmp_path, content, wanted="auto", packed=False):
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(content) if packed else content)
    return decode(path, "a.txt", packed, wanted)


def refused(tmp_path, content, wanted="auto"):
    with pytest.raises(Unreadable) as error:
        found(tmp_path, content, wanted)
    return error.value


@pytest.mark.parametrize(
    ("content", "codec", "called", "note"),
    [
        (b"plain", "utf-8", "utf-8", ""),
        (b"\xef\xbb\xbfplain", "utf-8-sig", "utf-8-sig", ""),
        ("中文".encode("utf-16"), "utf-16", "UTF-16LE", "byte order mark"),
        (b"\xfe\xff" + "中文".encode("utf-16-be"), "utf-16", "UTF-16BE", "byte order mark"),
        ("中文".encode("utf-32"), "utf-32", "UTF-32LE", "byte order mark"),
        ("plain 中文".encode("utf-16-be"), "utf-16-be", "UTF-16BE", "recognised"),
        ("plain 中文".encode("utf-32-le"), "utf-32-le", "UTF-32LE", "recognised"),
        (b"first\n\n0\0\nlast", "utf-8", "utf-8", ""),
        ("\0 begins".encode("utf-16"), "utf-16", "UTF-16LE", "byte order mark"),
        (CHINESE.encode("gbk"), "gb18030", "GB18030", "data.encoding=NAME"),
        (FRENCH.encode("cp1252"), "cp1252", "Windows-1252", "read as Windows-1252, recognised by its characters (not UTF-8)"),
        ("日本語のテキスト".encode("iso2022_jp"), "iso2022_jp", "ISO-2022-JP", "recognised"),
        ("un café".encode("cp1252"), "cp1252", "Windows-1252", "recognised"),
    ],
)
def test_encodings_that_are_certain(tmp_path, content, codec, called, note):
    result = found(tmp_path, content)
    assert (result.codec, result.called) == (codec, called)
    assert note in result.note and bool(note) == bool(result.note)
    assert content.decode(codec).lstrip("\ufeff") == result.head
    assert found(tmp_path, content, packed=True) == result


def test_a_character_outside_the_old_table_is_read(tmp_path):
    assert found(tmp_path, (CHINESE + "㐀😀").encode("gb18030")).head == CHINESE + "㐀😀"


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"a\nmenu " + "пл".encode("koi8_r"), 2, "data.encoding="),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.\n".encode("cp1250") * 3, 1, "looks like Windows-1250"),
        (b"x\n" + bytes(number * number % 251 for number in range(400)), 2, "nor an encoding that we recognise"),
        ("中文的\n".encode() + CHINESE.encode("gb18030"), 2, "byte 10 is not UTF-8, but other lines are: two encodings stand in one file"),
        (CHINESE.encode("gb18030") * 3 + TAIWANESE.encode("big5") * 3, 1, "parts of the file look like Big5 and parts like GB18030"),
        (FRENCH.encode("cp1252") * 40 + b"\n\x81", 42, "byte 2321 is not Windows-1252: it is broken here"),
        ('text "中'.encode()[:-1], 1, "cut short"),
        ("中文".encode("utf-16")[:-1], 1, "ends in the middle of a character"),
    ],
)
def test_what_is_not_certain_or_not_whole_is_refused_by_name_and_place(tmp_path, content, line, words):
    error = refused(tmp_path, content)
    assert error.line == line
    assert words in error.reason


def test_the_cure_goes_both_ways(tmp_path):
    error = refused(tmp_path, "Příliš žluťoučký kůň úpěl ďábelské ódy.\n".encode("cp1250") * 3)
    assert "data.encoding=Windows-1250" in error.reason and "iconv -f CP1250 -t UTF-8 'a.txt'" in error.reason
    assert error.encoding == "Windows-1250"
    assert found(tmp_path, "Příliš".encode("cp1250"), "Windows-1250").head == "Příliš"


def test_lines_of_chinese_that_are_utf8_by_chance_do_not_count(tmp_path):
    content = (CHINESE + "喜\n" + CHINESE * 2).encode("gb18030")
    assert "喜\n".encode("gb18030").decode("utf-8") == "ϲ\n"
    assert found(tmp_path, content).head == CHINESE + "喜\n" + CHINESE * 2


def test_the_encoding_that_is_named_counts(tmp_path):
    assert found(tmp_path, "é".encode("cp850"), "cp850").head == "é"
    assert found(tmp_path, b"\xef\xbb\xbfa", "UTF8").codec == "utf-8-sig"
    assert found(tmp_path, "é".encode("utf-16"), "utf-16-le").head == "é"
    error = refused(tmp_path, b"ab\ncd\xff", "utf-8")
    assert (error.line, error.reason) == (
        2,
        "byte 5 is not utf-8 (data.encoding); leave data.encoding out, and the file is recognised",
    )
    assert "data.encoding=gb18030" in refused(tmp_path, "镕".encode("gb18030"), "gb2312").reason
    reason = refused(tmp_path, b"ab", "gb1803").reason
    assert reason.startswith("data.encoding='gb1803' is no encoding that Python knows; did you mean gb180")


def test_line_ends(tmp_path):
    assert found(tmp_path, b"a\r\nb").newline == "\n"
    assert found(tmp_path, b"a\rb").newline == "\r"
    assert found(tmp_path, "a\rb".encode("utf-16")).newline == "\r"
    assert found(tmp_path, "ഀ\n".encode("utf-16")).newline == "\n"  # U+0D00 holds the byte of a carriage return


def test_nothing(tmp_path):
    assert "empty (0 bytes)" in refused(tmp_path, b"").reason
    assert "zero bytes" in refused(tmp_path, bytes(100)).reason


def test_characters_are_not_broken_where_chunks_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.data.files.decoding.CHUNK", 64)
    assert found(tmp_path, ("x" + CHINESE * 9).encode()).codec == "utf-8"
    assert found(tmp_path, ("x" + CHINESE * 9).encode("gb18030")).codec == "gb18030"
    assert refused(tmp_path, ("x" + CHINESE * 9).encode() + b"\nab\xff\xff").reason.startswith(f"byte {len(CHINESE.encode()) * 9 + 4} is")
