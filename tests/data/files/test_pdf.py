import gzip
import io
import sys

import pytest

from tunesmith.data.files.read import read_rows
from tunesmith.data.files.row import Row, Unreadable
from tunesmith.data.sample import FileReport

pypdf = pytest.importorskip("pypdf")


def pdf(*pages):
    """A PDF whose pages hold these lines of text, one below the other."""
    count = len(pages)
    font = 3 + 2 * count
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % (3 + 2 * index) for index in range(count)), count),
    ]
    for index, lines in enumerate(pages):
        drawn = b"BT /F1 12 Tf 14 TL 72 720 Td " + b" ".join(b"(%s) Tj T*" % line.encode("latin-1") for line in lines) + b" ET"
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 %d 0 R >> >> /Contents %d 0 R >>"
            % (font, 4 + 2 * index),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
        ]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    content, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    index = len(content)
    content += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + b"".join(b"%010d 00000 n \n" % place for place in places)
    return content + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, index)


def read(tmp_path, content, name="a.pdf"):
    path = tmp_path / name
    path.write_bytes(content)
    report = FileReport(name)
    rows = list(read_rows(path, name, report))
    (row,) = rows
    assert isinstance(row, Row) and row.line == 1
    return row.values["text"], report


def test_pages_are_joined_in_order_and_words_cut_at_line_ends_too(tmp_path):
    text, report = read(tmp_path, pdf(["A long exam-", "ple of Fine-", "Tuning"], ["and its se-"], ["cond page"]))
    assert text == "A long example of Fine-\nTuning\nand its second page\n"
    assert (report.encoding, report.warnings) == ("pdf", [])


def test_what_stands_on_most_pages_is_left_out_and_said(tmp_path):
    pages = [
        ["The Manual", f"text {word}", "The Manual", f"body {word}", f"Page {number} of 4"] for number, word in enumerate("abcd", start=1)
    ]
    text, report = read(tmp_path, pdf(*pages))
    assert text == "".join(f"text {word}\nThe Manual\nbody {word}\n" for word in "abcd")
    assert report.warnings == ["left out as header or footer of most pages: 'The Manual'; 'Page 1 of 4'"]


def test_two_pages_have_no_header(tmp_path):
    assert read(tmp_path, pdf(["Title", "a"], ["Title", "b"]))[0] == "Title\na\nTitle\nb\n"


def test_a_page_without_text_is_said_and_a_file_without_any_is_refused(tmp_path):
    text, report = read(tmp_path, pdf(["one"], [], ["three"], []))
    assert text == "one\nthree\n"
    assert report.warnings == ["no text on 2 pages (2, 4): pictures or scans, which need OCR to be read"]
    with pytest.raises(Unreadable, match=r"without any text \(2 pages\): a scan; it needs OCR"):
        read(tmp_path, pdf([], []))


def test_an_encrypted_file_is_refused(tmp_path):
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(["secret"])))
    writer.encrypt("password", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    with pytest.raises(Unreadable, match=r"encrypted PDF.*qpdf --decrypt"):
        read(tmp_path, out.getvalue())


def test_gzip_a_foreign_name_and_damage(tmp_path):
    assert read(tmp_path, gzip.compress(pdf(["words"])), "a.pdf.gz")[0] == "words\n"
    assert read(tmp_path, pdf(["words"]), "a.txt")[1].warnings == ["named .txt, but holds a PDF; read as that"]
    with pytest.raises(Unreadable, match="a broken PDF"):
        read(tmp_path, b"%PDF-1.4\nnothing")


def test_without_pypdf_the_cure_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(Unreadable, match=r"pip install 'tunesmith\[pdf\]'"):
        read(tmp_path, pdf(["words"]))
