import codecs
import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.data.corpus import blocks as module
from tunesmith.data.corpus.blocks import blocks, line_ranges, open_sources
from tunesmith.data.corpus.documents import Gathered
from tunesmith.data.corpus.index import line_places
from tunesmith.data.corpus.pieces import Block, Lines, _Making, _samples
from tunesmith.data.sample import FileReport, Sample
from tunesmith.data.sources import load_samples, understand
from tunesmith.errors import UserError

ROW = {"prompt": "How many?", "completion": "Two."}


def read(*names: Any, info: str = "auto", **how: Any) -> tuple[list[Sample], list[FileReport], list[str], list[Block]]:
    """All samples by way of blocks, the reports that come of it, what is broken, and the blocks."""
    sources = open_sources([str(name) for name in names], understand(**how), info)
    gathered, made, samples = Gathered([], []), [], []
    for block in blocks(sources, gathered.reports, gathered.broken):
        making = _Making()
        samples += [sample for _, sample, _ in _samples(block.parts, making)]
        gathered.add(making.piece(block.size, gathered.notes))
        made.append(block)
    facts = gathered.facts()
    reports = [FileReport(**{key: value for key, value in report.items() if key != "bad"}) for report in facts["reports"]]
    for report, counted in zip(reports, gathered.reports, strict=True):
        report.bad = counted.bad
    return samples, reports, gathered.broken, made


def write(path: Path, rows: list[Any], end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode(encoding))
    return path


def row(number: int) -> dict[str, str]:
    return {"prompt": f"Question {number}", "completion": f"Answer {number}"}


def origins(samples: list[Sample]) -> list[int]:
    return [int(sample.origin.rpartition(":")[2]) for sample in samples]


# --- the same as reading one file after another ---

GOOD = json.dumps(ROW)
LINES = st.sampled_from(
    [
        GOOD,
        json.dumps({"prompt": "a\u2028b\u2029c\x85d", "completion": "\ufeffe\x0bf\x0cg"}, ensure_ascii=False),
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yö 中文 🙂"}]}, ensure_ascii=False),
        json.dumps({"prompt": "long " * 60, "completion": "x"}),
        '  {"prompt": "indented", "completion": "y"}  ',
        "",
        "   \t",
        "\r",
        "5",
        "x",
        "{",
        '{"prompt": "cut',
        '{"prompt": 1, "prompt": 2}',
        "[]",
        "\x00\x00",
        '{"prompt": "\\ud800", "completion": "half"}',
        "\u3000",
    ]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    closed=st.booleans(),
    size=st.integers(1, 400),
)
def test_any_json_lines_cut_anywhere_are_read_as_in_one_go(tmp_path, lines, end, mark, closed, size):
    lines = [GOOD, *lines]
    content = end.join(lines) + (end if closed else "")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(codecs.BOM_UTF8 * mark + content.encode())
    expected, reports = load_samples(str(path), on_bad_row="skip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        samples, own, broken, made = read(path)
    assert (samples, own, broken) == (expected, reports, [])
    assert all(report.rows == report.good + len(report.bad) for report in own)
    assert len(made) >= len(content.encode()) / (size + max(len(line.encode()) + 2 for line in lines)) - 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=20),
    closed=st.booleans(),
    size=st.integers(1, 30),
)
def test_every_line_is_in_exactly_one_stretch(tmp_path, lines, closed, size):
    """Both ways of finding lines, by stretches and by single lines, agree with Python's own."""
    content = b"\n".join(lines) + b"\n" * closed
    (tmp_path / "lines").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", size)
        patch.setattr("tunesmith.data.corpus.index.CHUNK", size)
        stretches = list(line_ranges(tmp_path / "lines"))
        places = [
            place
            for begin_K, end_K, line_K in line_places(tmp_path / "lines")
            for place in zip(begin_K.tolist(), end_K.tolist(), line_K.tolist(), strict=True)
        ]
    split = content.split(b"\n")
    assert b"".join(content[begin:end] for begin, end, _ in stretches) == content
    assert all(first == content[:begin].count(b"\n") + 1 for begin, _, first in stretches)
    assert all(end == len(content) or content[end - 1 : end] == b"\n" for _, end, _ in stretches)
    assert [(content[begin:end], line) for begin, end, line in places] == [
        (text, number) for number, text in enumerate(split, start=1) if text.strip()
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "big5", "shift_jis", "euc_kr", "cp1252"])
def test_lines_of_other_encodings_stay_what_they_are(tmp_path, monkeypatch, encoding):
    text = {"big5": "請問這是什麼?", "shift_jis": "これは何ですか。ソ表能", "euc_kr": "이것은 무엇입니까?", "cp1252": "Où est l’été ?"}.get(
        encoding, "这是什么?"
    )
    path = write(tmp_path / "a.jsonl", [{"prompt": text * 4, "completion": text + str(n)} for n in range(40)], encoding=encoding)
    monkeypatch.setattr(module, "BLOCK", 300)
    how = {} if encoding.startswith("utf") else {"encoding": encoding}
    samples, [report], _, made = read(path, **how)
    assert [sample.messages[-1]["content"] for sample in samples] == [text + str(n) for n in range(40)] and len(made) > 5
    assert (samples, [report]) == load_samples(str(path), **how) and report.encoding == encoding
    assert all(isinstance(part.rows, Lines) for block in made for part in block.parts)  # not read here, but where it is worked on


def other_kinds(folder: Path) -> list[Path]:
    """The same 30 rows (a text has others) in every kind of file that is read as a stream of rows."""
    import pyarrow
    import pyarrow.parquet

    rows = [row(number) for number in range(30)]
    (folder / "a.json").write_text(json.dumps(rows, indent=1))
    (folder / "b.csv").write_text("prompt,completion\n" + "".join(f'"{r["prompt"]}\nmore",{r["completion"]}\n' for r in rows))
    (folder / "c.tsv").write_text("prompt\tcompletion\n" + "".join(f"{r['prompt']}\t{r['completion']}\n" for r in rows))
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\r\n" for r in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "e.parquet")
    (folder / "f.txt").write_text("A text of two paragraphs.\n\nThe second one.\n" * 20)
    write(folder / "g.jsonl", rows, encoding="utf-16")
    (folder / "h.jsonl").write_bytes(b"\r".join(json.dumps(r).encode() for r in rows))  # an old Macintosh's line ends
    return sorted(folder.iterdir())


def test_every_kind_of_file_is_read_as_in_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 500)
    for path in other_kinds(tmp_path):
        expected, reports = load_samples(str(path))
        samples, own, broken, made = read(path)
        assert (samples, own, broken) == (expected, reports, []), path.name
        assert len(made) > 2 or path.suffix == ".txt", path.name


def test_a_folder_of_all_kinds_in_one_order(tmp_path):
    paths = [path for path in other_kinds(tmp_path) if path.suffix != ".txt"]
    (tmp_path / "f.txt").unlink()
    samples, reports, broken, made = read(tmp_path)
    assert (samples, reports) == load_samples(str(tmp_path)) and not broken
    assert [report.file for report in reports] == [str(path) for path in paths] and len(made) == 1  # small files share a block
    assert [part.number for part in made[0].parts] == sorted(part.number for part in made[0].parts)


# --- samples of a source ---


@pytest.mark.parametrize("count", [1, 7, 39, 40, 60])
def test_a_sample_is_the_one_that_is_always_taken(tmp_path, count):
    rows: list[Any] = [row(number) for number in range(40)]
    rows[5] = {"prompt": "no answer"}
    folder = tmp_path / "many"
    folder.mkdir()
    write(folder / "a.jsonl", rows[:20])
    (folder / "b.json").write_text(json.dumps(rows[20:]))
    samples, reports, broken, _ = read(f"{folder}#{count}")
    expected, theirs = load_samples(f"{folder}#{count}", on_bad_row="skip")
    assert (samples, reports, broken) == (expected, theirs, []) and len(samples) == min(count, 39)
    assert [(report.rows, report.good, len(report.bad)) for report in reports] == [(20, 19, 1), (20, 20, 0)]


def test_a_source_given_twice_is_two_sources(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(number) for number in range(10)])
    samples, reports, _, _ = read(path, f"{path}#3", path)
    assert origins(samples)[:10] == origins(samples)[-10:] == list(range(1, 11)) and len(samples) == 23
    assert [report.rows for report in reports] == [10, 10, 10]


# --- what cannot be read ---


def test_unreadable_files_are_all_named_and_the_others_are_read(tmp_path):
    write(tmp_path / "a.jsonl", [row(1), row(2)])
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.json").write_text(json.dumps([row(3), row(4)])[:-20])
    (tmp_path / "d.csv").write_text("prompt,completion\n")
    write(tmp_path / "e.jsonl", [{"height": 1, "width": 2}])
    (tmp_path / "f.csv").write_text("height,width\n1,2\n3,4\n")
    (tmp_path / "g.txt").write_bytes(b"PK\x03\x04 zip")
    write(tmp_path / "h.jsonl", [row(5)])
    samples, reports, broken, _ = read(tmp_path)
    assert [sample.messages[-1]["content"] for sample in samples] == ["Answer 1", "Answer 2", "Answer 3", "Answer 5"]
    with pytest.raises(UserError) as caught:
        load_samples(str(tmp_path))
    assert broken == list(caught.value.problems)
    for name, problem in zip("bcdefg", broken, strict=True):
        assert f"/{name}." in problem
    assert [report.rows for report in reports] == [2, 0, 1, 0, 0, 2, 0, 1]


def test_blank_lines_of_other_scripts_are_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\u3000\n\u2003\n", encoding="utf-8")
    _, _, [broken], _ = read(tmp_path / "a.jsonl")
    with pytest.raises(UserError) as caught:
        load_samples(str(tmp_path / "a.jsonl"))
    assert [broken] == list(caught.value.problems) and "no rows" in broken


def test_names_that_mean_nothing_are_named_together(tmp_path):
    write(tmp_path / "a.jsonl", [ROW])
    with pytest.raises(UserError) as caught:
        open_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "builtin:nothing"], understand())
    first, second = caught.value.problems
    assert "b.jsonl" in first and "a.jsonl" in first and "builtin:nothing" in second  # the nearest name is offered
    for names in ([], [""]):
        with pytest.raises(UserError, match="no training data"):
            open_sources(names, understand())


def test_a_format_is_decided_by_the_first_rows_even_where_they_are_bad(tmp_path, monkeypatch):
    """As many rows as reading in one go looks at, bad ones among them."""
    monkeypatch.setattr(module, "DECIDED_FROM", 5)
    monkeypatch.setattr("tunesmith.data.sources.DECIDED_FROM", 5)
    rows = ['{"text": 1'] * 4 + [json.dumps({"messages": [], "tools": None, **ROW})] + [json.dumps(ROW)] * 9
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    samples, reports, _, _ = read(tmp_path / "a.jsonl")
    assert (samples, reports) == load_samples(str(tmp_path / "a.jsonl"), on_bad_row="skip")


# --- files that change ---


def test_what_changes_after_it_was_opened_is_named(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [ROW]) for name in "abc"]
    sources = open_sources([str(tmp_path)], understand())
    sources.unchanged()
    write(paths[0], [ROW, ROW])
    os.utime(paths[1], ns=(1, 1))
    paths[2].unlink()
    with pytest.raises(UserError) as caught:
        sources.unchanged()
    assert len(caught.value.problems) == 3 and all("changed or vanished" in problem for problem in caught.value.problems)


def test_a_file_that_vanishes_between_naming_and_reading_is_broken(tmp_path):
    write(tmp_path / "a.jsonl", [ROW])
    write(tmp_path / "b.jsonl", [ROW])
    sources = open_sources([str(tmp_path)], understand())
    (tmp_path / "a.jsonl").unlink()
    broken: list[str] = []
    [block] = blocks(sources, [], broken)
    assert broken == [f"{tmp_path}/a.jsonl: no such file"] and len(block.parts) == 1


def test_a_file_that_vanishes_while_it_is_read_is_an_error_by_name(tmp_path):
    path = write(tmp_path / "a.jsonl", [ROW])
    [block] = blocks(open_sources([str(path)], understand()), [], [])
    path.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl: changed or vanished"):
        list(_samples(block.parts, _Making()))


# --- fingerprints ---


def test_a_fingerprint_says_what_is_read_and_how(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(1), row(2)])
    first = open_sources([str(path)], understand()).fingerprint()
    assert open_sources([str(path)], understand()).fingerprint() == first
    others = [
        open_sources([f"{path}#2"], understand()).fingerprint(),
        open_sources([str(path)], understand(columns={"prompt": "completion"})).fingerprint(),
        open_sources([str(path)], understand(encoding="utf-8")).fingerprint(),
        open_sources([str(path), str(path)], understand()).fingerprint(),
        open_sources(["builtin:tickets"], understand()).fingerprint(),
    ]
    write(path, [row(1), row(3)])
    others.append(open_sources([str(path)], understand()).fingerprint())
    assert len({first, *others}) == 7
    book = tmp_path / "dataset_info.json"
    book.write_text(json.dumps({"mine": {"file_name": "a.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}}))
    named = open_sources(["mine"], understand(), str(book)).fingerprint()
    assert open_sources(["mine"], understand(), str(book)).fingerprint() == named != others[-1]
    book.write_text(json.dumps({"mine": {"file_name": "a.jsonl", "columns": {"prompt": "completion", "response": "prompt"}}}))
    assert open_sources(["mine"], understand(), str(book)).fingerprint() != named


# --- many and large ---


def test_thousands_of_small_files_take_seconds(tmp_path):
    for number in range(2000):
        (tmp_path / f"{number:04}.md").write_text(f"# Title {number}\n\nSome words.\n")
    begun = time.monotonic()
    samples, reports, broken, made = read(tmp_path)
    assert len(samples) == len(reports) == 2000 and not broken and len(made) == 1
    assert time.monotonic() - begun < 12


def test_a_line_of_fifty_megabytes_is_one_row(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "w") as file:
        file.write(GOOD + "\n" + json.dumps({"prompt": "p", "completion": "x" * 50_000_000}) + "\n" + GOOD)
    stretches = list(line_ranges(path))
    assert [first for _, _, first in stretches] == [1, 3] and stretches[-1][1] == path.stat().st_size


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_followed_to_files_and_never_in_circles(tmp_path):
    write(tmp_path / "real.jsonl", [ROW])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(tmp_path / "real.jsonl")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    (folder / "round").symlink_to(folder)
    samples, [report], broken, _ = read(folder)
    assert len(samples) == 1 and not broken and report.file.endswith("a.jsonl")


@pytest.mark.parametrize("codec", module.LINEWISE)
def test_no_line_end_is_a_part_of_another_character(codec):
    for first in range(0, 0x110000, 64):
        characters = "".join(chr(number) for number in range(first, first + 64) if number != 10 and not 0xD800 <= number < 0xE000)
        assert b"\n" not in characters.encode(codec, errors="ignore"), hex(first)


@pytest.mark.parametrize("part", ["", "#9"])
def test_rows_with_judged_answers_are_set_apart(tmp_path, part):
    """One among rows of another shape must not be learned because the file as a whole may be."""
    judged = [{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, {"prompt": "Hi", "completion": "No.", "label": False}]
    path = write(tmp_path / "a.jsonl", [row(1), judged[0], row(2), judged[1], row(3), row(4)])
    samples, [report], broken, _ = read(f"{path}{part}")
    assert origins(samples) == [1, 3, 5, 6] and not broken
    assert [bad.line for bad in report.bad] == [2, 4] and all("judged answer" in bad.reason for bad in report.bad)
    assert (report.rows, report.good) == (6, 4)
    assert samples == load_samples(f"{path}{part}", on_bad_row="skip")[0]
