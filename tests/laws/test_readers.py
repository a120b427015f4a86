"""Laws of every reader: a text comes back as it was written or the file is refused, nothing crashes, lines are the right ones."""

import contextlib
import csv
import gzip
import io
import itertools
import json
import random
from pathlib import Path
from typing import Literal

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunesmith.data.files.read import Row, read_rows
from tunesmith.data.files.recognise import Unreadable
from tunesmith.data.sample import BadRow, FileReport

settings.register_profile(
    "readers", derandomize=True, deadline=None, max_examples=60, database=None, suppress_health_check=list(HealthCheck)
)
LAW = settings.get_profile("readers")

TEXT = st.text(max_size=30)  # any characters but surrogates, which no file can hold
CELL = st.text(st.sampled_from("ab ,;|\t\n\"'{}[]:\\é中\u2028\ufeff0"), max_size=12) | TEXT.filter(lambda text: "\r" not in text)
TABLE = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=30)
SENTENCES = {
    "gb18030": "这家店的菜很好吃，我们都喜欢，下次还会再来的。最后五分钟订的，卖家特别好接单了，谢谢。",
    "cp950": "這家店的菜很好吃，我們都喜歡，下次還會來的。請你看看這個，不要忘了時間，謝謝你們。",
    "cp932": "この店の料理はとてもおいしいので、また来たいと思います。これはペンです。",
    "euc_jp": "この店の料理はとてもおいしいので、また来たいと思います。これはペンです。",
    "cp949": "이 가게의 음식은 아주 맛있어서 다시 오고 싶습니다. 우리는 모두 그것을 좋아하고 있다.",
    "cp1252": "Le garçon a été très content d’être là, même après l’été à Orléans où il a vécu.",
    "cp1251": "Это очень хороший ресторан, мы обязательно придём сюда ещё раз.",
    "utf-16": "Straße, 中文, ресторан",
    "utf-32": "Straße, 中文, ресторан",
    "utf-16-le": "plain words and Straße",
    "utf-16-be": "plain words and Straße",
    "utf-32-le": "plain words and 中文",
    "utf-32-be": "plain words and 中文",
    "utf-8": "Straße, 中文, ресторан",
    "utf-8-sig": "Straße, 中文, ресторан",
    "iso2022_jp": "この店の料理はとてもおいしいので、また来たいと思います。",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


def written(folder: Path, name: str, content: bytes, packed: bool = False) -> Path:
    path = folder / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    return path


def read(path: Path, **how: str) -> list[Row]:
    """The rows of a file in which every row is good."""
    rows = list(read_rows(path, path.name, FileReport(path.name), **how))
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row for row in rows if isinstance(row, Row)]


def as_csv(rows: list[tuple[str, str]], delimiter: str = ",", ending: str = "\n", quoting: Literal[0, 1] = csv.QUOTE_MINIMAL) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows([("prompt", "completion"), *rows])
    return out.getvalue()


def is_table(rows: list[tuple[str, str]]) -> bool:
    """Rows that a header stands out from: a name that comes again and again below it is a cell."""
    return not any(sum(row[column].strip() == name for row in rows) > 1 for column, name in enumerate(("prompt", "completion")))


@LAW
@given(st.lists(TEXT, min_size=1, max_size=20), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_json_lines_bring_back_any_text(folder, texts, escaped, ending, packed):
    content = ending.join(json.dumps({"a": text, text: [text]}, ensure_ascii=escaped) for text in texts)
    rows = read(written(folder, "a.jsonl", content.encode(), packed))
    assert [row.values for row in rows] == [{"a": text, text: [text]} for text in texts]
    assert [row.line for row in rows] == list(range(1, len(texts) + 1))


@LAW
@given(st.lists(TEXT, min_size=1, max_size=20), st.booleans(), st.sampled_from([None, 1, 4, "\t"]), st.booleans())
def test_a_json_array_brings_back_any_text_and_knows_its_lines(folder, texts, escaped, indent, packed):
    content = json.dumps([{"a": text, "b": {"c": text}} for text in texts], ensure_ascii=escaped, indent=indent)
    rows = read(written(folder, "a.json", content.encode(), packed))
    assert [row.values for row in rows] == [{"a": text, "b": {"c": text}} for text in texts]
    width = 6  # lines of a row when it is spread out
    assert [row.line for row in rows] == [1 if indent is None else 2 + width * index for index in range(len(texts))]


@LAW
@given(
    TABLE.filter(is_table),
    st.sampled_from(",;|\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
@example([("a\nb", "c"), ("", ""), ("1", '"')], ";", "\r\n", csv.QUOTE_ALL, False)
def test_a_table_brings_back_any_text_and_knows_its_lines(folder, rows, delimiter, ending, quoting, packed):
    content = as_csv(rows, delimiter, ending, quoting)
    found = read(written(folder, "a.tsv" if delimiter == "\t" else "a.csv", content.encode(), packed))
    assert [tuple(row.values.values()) for row in found] == rows
    assert all(list(row.values) == ["prompt", "completion"] for row in found)
    begins = [as_csv(rows[:count], delimiter, ending, quoting).count("\n") + 1 for count in range(len(rows))]
    assert [row.line for row in found] == begins


@LAW
@given(TABLE.filter(is_table))
def test_a_table_of_old_macintosh_line_ends(folder, rows):
    rows = [(first.replace("\n", " "), second.replace("\n", " ")) for first, second in rows]
    found = read(written(folder, "mac.csv", as_csv(rows, ending="\r").encode()))
    assert [tuple(row.values.values()) for row in found] == rows
    assert [row.line for row in found] == list(range(2, len(rows) + 2))


@LAW
@given(TABLE.filter(is_table))
def test_cells_are_those_that_pandas_reads(folder, rows):
    rows = [(first.replace("\0", ""), second.replace("\0", "")) for first, second in rows]
    path = written(folder, "clean.csv", as_csv(rows, quoting=csv.QUOTE_ALL).encode())
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8")
    assert [row.values for row in read(path)] == frame.to_dict("records")


@LAW
@given(st.lists(st.tuples(TEXT, st.integers(-(2**63), 2**63 - 1), st.lists(TEXT, max_size=3)), min_size=1, max_size=30), st.booleans())
def test_tables_of_arrow_bring_back_any_text(folder, cells, packed):
    values = [{"a": text, "number": number, "list": texts, "object": {"b": text}} for text, number, texts in cells]
    table = pyarrow.Table.from_pylist(values)
    out, feather = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, out, row_group_size=7)
    pyarrow.feather.write_feather(table, feather, compression="uncompressed")
    for name, content in (("a.parquet", out.getvalue()), ("a.arrow", feather.getvalue())):
        path = written(folder, name, content, packed)
        rows = read(path)
        assert [row.values for row in rows] == table.to_pylist() == values
        assert [row.line for row in rows] == list(range(1, len(values) + 1))


@LAW
@given(st.lists(st.text(st.characters(exclude_characters="\r\n"), max_size=20), min_size=1, max_size=30), st.sampled_from(["\n", "\r\n"]))
def test_lines_of_a_text_come_back(folder, lines, ending):
    lines = ["first", *lines, "last"]
    path = written(folder, "a.txt", ending.join(lines).encode())
    assert [row.values["text"] for row in read(path)] == ["\n".join(lines)]
    found = [(row.line, row.values["text"]) for row in read(path, documents="line")]
    assert found == [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


@pytest.mark.parametrize("codec", SENTENCES)
@settings(LAW, max_examples=12)
@given(TEXT, st.booleans())
def test_a_named_encoding_is_read_exactly(folder, codec, text, packed):
    text = text.encode(codec, errors="ignore").decode(codec, errors="ignore").replace("\x1b", "")  # which begins another table
    content = (json.dumps({"a": text}, ensure_ascii=False) + "\n").encode(codec)
    assert [row.values for row in read(written(folder, "named.jsonl", content, packed), encoding=codec)] == [{"a": text}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt", "conll"])
@pytest.mark.parametrize("codec", SENTENCES)
def test_every_kind_is_read_in_every_encoding(folder, codec, kind):
    sentence = SENTENCES[codec]
    rows: list[dict] = [{"prompt": sentence, "completion": word} for word in sentence.split()[:3]] * 2
    match kind:
        case "jsonl":
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        case "json":
            content = json.dumps(rows, ensure_ascii=False, indent=1)
        case "csv" | "tsv":
            content = as_csv([(row["prompt"], row["completion"]) for row in rows], "\t" if kind == "tsv" else ",", "\r\n")
        case "txt":
            content, rows = sentence + "\n" + sentence, [{"text": sentence + "\n" + sentence}]
        case _:
            tokens = sentence.split() if " " in sentence else list(sentence)
            tags = ["O"] * (len(tokens) - 1) + ["B-X"]
            rows = [{"tokens": tokens, "tags": tags}] * 2
            content = "\n\n".join("\n".join(f"{token} {tag}" for token, tag in zip(tokens, tags, strict=True)) for _ in rows)
    for packed in (False, True):
        path = written(folder, f"every.{kind}", content.encode(codec), packed)
        report = FileReport(path.name)
        found = list(read_rows(path, path.name, report))
        assert [row.values for row in found if isinstance(row, Row)] == rows
        # The name that is said can be said back.
        assert list(read_rows(path, path.name, encoding=report.encoding)) == found


@settings(LAW, max_examples=100)
@given(st.lists(st.sampled_from(list(SENTENCES)), min_size=1, max_size=2, unique=True), st.data())
def test_text_in_an_unnamed_encoding_is_never_changed(folder, several, data):
    """A part of a sentence is read as it was written or refused, and so are parts in two encodings that are not very short."""
    content, texts = b"", []
    for codec in several:
        text = SENTENCES[codec]
        least = 4 if len(several) == 1 else 12  # characters; fewer can be right in two encodings
        begins = data.draw(st.integers(0, len(text) - least))
        text = text[begins : data.draw(st.integers(begins + least, len(text)))] * data.draw(st.integers(1, 3))
        content += (json.dumps({"a": text}, ensure_ascii=False) + "\n").encode(codec)
        texts.append(text)
    with contextlib.suppress(Unreadable):
        rows = list(read_rows(written(folder, "unnamed.jsonl", content), "unnamed.jsonl"))
        assert [row.values["a"] for row in rows if isinstance(row, Row)] == texts or any(isinstance(row, BadRow) for row in rows)


def good_files() -> dict[str, bytes]:
    """A whole file of each kind."""
    rows = [{"prompt": f"question {index}", "completion": "答え " * index} for index in range(8)]
    table = pyarrow.Table.from_pylist(rows)
    parquet, arrow, stream = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.feather.write_feather(table, arrow, compression="uncompressed")
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {
        "a.jsonl": lines.encode(),
        "b.jsonl": lines.encode("utf-16"),
        "c.jsonl": gzip.compress(lines.encode()),
        "d.jsonl": lines.encode("cp932"),
        "a.json": json.dumps(rows, indent=1).encode(),
        "b.json": json.dumps({"data": rows}).encode(),
        "a.csv": as_csv([(row["prompt"], row["completion"] + '"\n') for row in rows]).encode(),
        "a.tsv": as_csv([(row["prompt"], row["completion"]) for row in rows], "\t").encode("utf-16"),
        "a.md": b"---\ntitle: x\n---\n# One\n\ntext\n\n```\n# no heading\n```\n## Two\nmore\n",
        "a.conll": b"-DOCSTART- O\n\n# comment\nParis B-LOC\nis O\nbig O\n\nRome B-LOC\n",
        "a.parquet": parquet.getvalue(),
        "a.arrow": arrow.getvalue(),
        "b.arrow": stream.getvalue(),
        "a.pdf": pdf_of("some words"),
    }


def pdf_of(text: str) -> bytes:
    """A PDF of one page, written by hand."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 4 0 R >> >> /MediaBox [0 0 612 792] /Contents 5 0 R >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
    ]
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    index = len(content)
    content += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return content + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % index


GOOD = good_files()
NAMES = list(GOOD)


def survives(path: Path, documents: str = "file", encoding: str = "auto") -> None:
    """Only rows, bad rows and Unreadable come out of a reader."""
    last = 0
    with contextlib.suppress(Unreadable):
        for row in itertools.islice(read_rows(path, path.name, encoding=encoding, documents=documents), 1000):
            assert row.line >= max(1, last) and (isinstance(row, Row) or row.reason)
            last = row.line


def test_the_good_files_are_good(folder):
    for name, content in GOOD.items():
        assert read(written(folder, name, content))


@settings(LAW, max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(NAMES), st.sampled_from(["file", "line", "heading"]), st.sampled_from(["auto", "gb18030"]))
def test_no_bytes_crash_a_reader(folder, content, name, documents, encoding):
    survives(written(folder, name, content), documents, encoding)


@settings(LAW, max_examples=300)
@given(st.text(st.sampled_from('{}[]":,\\ \n\r\t\x00é中#-`~OB0e.\'";|\ufeff'), max_size=60), st.sampled_from(NAMES), st.booleans())
def test_no_text_crashes_a_reader(folder, text, name, marked):
    survives(written(folder, name, text.encode("utf-8-sig" if marked else "utf-8")), "heading")


@pytest.mark.parametrize("name", NAMES)
def test_no_damage_crashes_a_reader(folder, name):
    """Bytes changed, cut out and doubled in a good file."""
    chance = random.Random(name)
    for _ in range(25):
        content = bytearray(GOOD[name])
        for _ in range(chance.randint(1, 4)):
            if not content:
                break
            at = chance.randrange(len(content))
            match chance.randrange(4):
                case 0:
                    content[at] = chance.randrange(256)
                case 1:
                    del content[at : at + chance.randint(1, 40)]
                case 2:
                    content[at:at] = content[at : at + 40]
                case _:
                    del content[at + 1 :]
        survives(written(folder, name, bytes(content)), "heading")
