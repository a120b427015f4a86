"""A PDF as one document: the text of its pages in order, without what is printed on every page; it needs `pypdf`.

A PDF places words on paper; lines, paragraphs and reading order are recovered from the places and can be wrong in tables
and in several columns. Scans hold pictures only, and are said.
"""

import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tunesmith.data.files.decoding import open_bytes
from tunesmith.data.files.row import Row, Unreadable
from tunesmith.data.sample import FileReport

EDGE = 2  # first and last lines of a page that may be its header or footer
PAGES = 3  # fewer say nothing about what is repeated
HYPHEN = re.compile(r"([a-zß-öø-ÿ])[-\u00ad\u2010]\n([a-zß-öø-ÿ])")


def rows(path: Path, name: str, report: FileReport, *, packed: bool = False) -> Iterator[Row]:
    """One row with the text of all pages. `packed`: by gzip. Raises Unreadable."""
    pages = _pages(path, name, packed)
    empty = [number for number, page in enumerate(pages, start=1) if not page]
    if len(empty) == len(pages):
        raise Unreadable(name, 0, f"a PDF without any text ({_count(len(pages), 'page')}): a scan; it needs OCR first (ocrmypdf IN OUT)")
    if empty:
        report.warnings.append(f"no text on {_count(len(empty), 'page')} ({_first(empty)}): pictures or scans, which need OCR to be read")
    pages, repeated = _without_repeated(pages)
    if repeated:
        report.warnings.append(f"left out as header or footer of most pages: {'; '.join(map(repr, repeated))}")
    text = "\n".join("\n".join(page) for page in pages if page)
    yield Row(name, 1, {"text": HYPHEN.sub(r"\1\2", text) + "\n"})


def _pages(path: Path, name: str, packed: bool) -> list[list[str]]:
    """The lines of each page that are not blank at its ends."""
    try:
        import pypdf
    except ImportError:
        raise Unreadable(name, 0, "a PDF; it is read with an optional library: pip install 'tunesmith[pdf]'") from None
    log = logging.getLogger("pypdf")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it prints what it repairs; what counts is whether there is text
    try:
        with open_bytes(path, packed) as file:
            reader = pypdf.PdfReader(io.BytesIO(file.read()))
        if reader.is_encrypted:
            raise Unreadable(name, 0, "an encrypted PDF: take the password off first (qpdf --decrypt IN OUT)")
        return [_lines(page.extract_text() or "") for page in reader.pages]
    except Unreadable:
        raise
    except (Exception, RecursionError) as error:  # a broken file surfaces as almost any error of the library
        raise Unreadable(name, 0, f"a broken PDF ({str(error).strip() or type(error).__name__}): fetch it again") from None
    finally:
        log.setLevel(level)


def _lines(text: str) -> list[str]:
    text = "".join(character if not "\ud800" <= character <= "\udfff" else "\ufffd" for character in text)
    return [line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")] if text.strip() else []


def _without_repeated(pages: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """Pages without the lines that stand at the edge of more than half of them, page numbers aside; and those lines."""
    filled = [page for page in pages if page]
    if len(filled) < PAGES:
        return pages, []
    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for page in filled:
        for line in {_alike(line): line for line in page[:EDGE] + page[-EDGE:]}.values():
            counts[_alike(line)] += 1
            shown.setdefault(_alike(line), line.strip())
    repeated = {line for line, count in counts.items() if line and count > len(filled) / 2}
    kept = []
    for page in pages:
        first, last = 0, len(page)
        while first < min(EDGE, last) and _alike(page[first]) in repeated:
            first += 1
        while last > max(first, len(page) - EDGE) and _alike(page[last - 1]) in repeated:
            last -= 1
        kept.append(page[first:last])
    return kept, [shown[line] for line in shown if line in repeated]


def _alike(line: str) -> str:
    """A line with its numbers and blanks made equal: `Page 3 of 10` and `Page 4 of 10` are one footer."""
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _first(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")
