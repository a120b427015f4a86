import gzip
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunesmith.data.look.check import check
from tunesmith.data.names.resolve import File
from tunesmith.verbs import checked
from tunesmith.verbs.checked import Reached, print_checked


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    rows = [{"text": f"第{n}间房很干净，早餐也好吃", "label": "好评" if n % 3 else "差评"} for n in range(30)]
    Path("评论 一.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, {"text": "x", "label": ""}]))


def printed(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    print_checked(check(["评论 一.jsonl"]))
    return capsys.readouterr().out


def test_elsewhere_every_line_can_be_searched_for_by_the_file(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, False).splitlines()
    assert lines == [
        "评论 一.jsonl: 30 of 31 rows usable (labels, utf-8)",
        "评论 一.jsonl:31: no label: 'label' is empty",
        "评论 一.jsonl: about 750 tokens, 13% of the characters learned; rows of about 25 tokens (median), 25 (90 %), 25 (99 %), "
        "25 (longest)",
        "评论 一.jsonl: note: the answers are labels, 2 different: '好评' 20, '差评' 10",
    ]


def test_in_a_terminal_there_are_a_table_a_histogram_and_bars_of_labels(capsys, monkeypatch):
    lines = re.sub("\x1b\\[[0-9;]*m", "", printed(capsys, monkeypatch, True)).splitlines()
    assert lines[0].split() == ["file", "shape", "encoding", "rows", "usable", "bad"]
    assert lines[1].split() == ["评论", "一.jsonl", "labels", "utf-8", "31", "30", "1"]
    assert any(line.startswith("17–32 ████") and line.endswith("30 100.0%") for line in lines)
    assert any("╌ data.max_length 1,024" in line for line in lines)
    bars = [line for line in lines if line.startswith("'好评' █") or line.startswith("'差评' █")]
    assert [line.split()[-2:] for line in bars] == [["20", "66.7%"], ["10", "33.3%"]]
    assert lines[-1].startswith("tokens are estimated: 4 ASCII characters a token")


def test_progress_is_shown_in_a_terminal_for_long_files_only(monkeypatch):
    monkeypatch.setattr(checked, "BIG", 100)
    file = File("评论 一.jsonl", Path("评论 一.jsonl"))
    with Reached() as reached:
        reached.console = Console(file=io.StringIO(), force_terminal=False)
        reached(file, 1, 1)
        bar: Any = reached.bar
        assert bar is None
        reached.console = Console(file=io.StringIO(), force_terminal=True, width=100)
        reached(file, 16, 16)
        bar = reached.bar
        [task] = bar.tasks
        assert (task.description, task.total, task.completed, task.fields["rows"]) == ("评论 一.jsonl", 31, 16, "16 rows")
        reached(File("small", None), 1, 1)
        assert bar.tasks == []


def test_lines_are_counted_where_they_are_those_of_the_rows():
    assert checked._lines(Path("评论 一.jsonl")) == 31
    Path("packed").write_bytes(gzip.compress(b"a\nb\nc\n"))
    Path("one.json").write_text("[{}]\n")
    assert (checked._lines(Path("packed")), checked._lines(Path("one.json"))) == (None, None)


def test_the_page_shows_what_is_printed(capsys):
    page = (Path(__file__).parents[2] / "docs/data/check.md").read_text(encoding="utf-8")
    [table] = re.findall(r"^```csv\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    Path("reviews.csv").write_text(table, encoding="utf-8")
    print_checked(check(["reviews.csv"]))
    assert f"```text\n{capsys.readouterr().out}```" in page
