import io

import pytest

from tunesmith.data.files.plain_text import lines, parts, pieces
from tunesmith.data.sample import FileReport


def stream(text, newline="\n"):
    return io.StringIO(text, newline=newline)


def texts(rows):
    return {row.line: row.values["text"] for row in rows}


def test_a_text_is_one_row():
    assert texts(pieces(stream("\ufeffone\r\n\r\ntwo\rthree"), "a.txt")) == {1: "one\n\ntwo\nthree"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_long_text_is_cut_between_paragraphs_and_nothing_is_lost(ending):
    text = "".join(f"paragraph {number}{ending}goes on{ending}{ending}" for number in range(40))
    rows = list(pieces(stream(text), "a.txt", longest=100))
    assert "".join(row.values["text"] for row in rows) == text.replace(ending, "\n")
    assert len(rows) > 8 and all(len(row.values["text"]) <= 100 for row in rows)
    assert all(row.values["text"].startswith("paragraph") and row.line % 3 == 1 for row in rows)
    assert rows[1].values["text"].split("\n")[0] == text.split(ending)[rows[1].line - 1]


def test_a_long_text_without_paragraphs_is_cut_at_a_line_and_one_without_lines_anywhere():
    rows = list(pieces(stream("word\n" * 50), "a.txt", longest=20))
    assert "".join(row.values["text"] for row in rows) == "word\n" * 50
    assert all(row.values["text"].startswith("word") and row.line == index * 4 + 1 for index, row in enumerate(rows))
    rows = list(pieces(stream("x" * 95 + "\r\ny"), "a.txt", longest=96))
    assert ["".join(row.values["text"] for row in rows), rows[-1].line] == ["x" * 95 + "\ny", 2 if len(rows) > 1 else 1]
    assert "".join(row.values["text"] for row in pieces(stream("z" * 250), "a.txt", longest=100)) == "z" * 250


def test_lines():
    assert texts(lines(stream("\ufeffone\r\n \n\ntwo\u2028more\nlast"), "a.txt")) == {1: "one", 4: "two\u2028more", 5: "last"}
    assert texts(lines(stream("one\r\rtwo\r", newline="\r"), "a.txt")) == {1: "one", 3: "two"}


MARKDOWN = """\
---
title: Guide
---
before the first heading

# Guide #
## Install
### Linux

run this:

~~~sh
# no heading
```
## nor this
~~~
### Windows
### macOS
brew
####Not a heading
# Use
go
"""


def test_parts_carry_the_headings_above_them():
    report = FileReport("a.md")
    assert texts(parts(stream(MARKDOWN), "a.md", report)) == {
        4: "before the first heading\n\n",
        8: "# Guide #\n## Install\n### Linux\n\nrun this:\n\n~~~sh\n# no heading\n```\n## nor this\n~~~\n",
        18: "# Guide #\n## Install\n### macOS\nbrew\n####Not a heading\n",
        21: "# Use\ngo\n",
    }
    assert report.warnings == ["front matter left out (lines 1 to 3)"]


def test_a_line_of_dashes_is_no_front_matter_without_an_end():
    report = FileReport("a.md")
    assert texts(parts(stream("---\n# A\ntext\n"), "a.md", report)) == {1: "---\n", 2: "# A\ntext\n"}
    assert report.warnings == []


def test_code_with_backticks_in_its_first_line_is_no_fence():
    assert len(texts(parts(stream("# A\n```x``` is code\n# B\nb\n"), "a.md", FileReport("a.md")))) == 2


def test_a_long_part_is_cut():
    rows = list(parts(stream("# A\n" + "text\n" * 20), "a.md", FileReport("a.md"), longest=30))
    assert "".join(row.values["text"].removeprefix("# A\n") for row in rows) == "text\n" * 20
    assert all(row.values["text"].startswith("# A\n") for row in rows) and len(rows) > 1
