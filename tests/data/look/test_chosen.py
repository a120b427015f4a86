import json
from pathlib import Path

import pytest

from tunesmith.data.look.chosen import choose, line_of
from tunesmith.data.sample import BadRow
from tunesmith.data.sources import Reading
from tunesmith.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"q{n}", "completion": f"a{n}" if n % 5 else ""} for n in range(1, 101)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("b.json").write_text(json.dumps(rows[:4], indent=1))


def lines(source, rows, line=None):
    return [line_of(row) for row in choose(source, Reading(), rows, line)]


def test_the_first_rows_with_the_bad_ones_between_them():
    found = choose("a.jsonl", Reading(), 6)
    assert [line_of(row) for row in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [isinstance(row, BadRow) for row in found] == [False] * 4 + [True] + [False] * 2


def test_rows_from_a_line_on():
    assert lines("a.jsonl", 2, 43) == [43, 44]
    assert lines("a.jsonl", 1, 45) == [45, 46]  # line 45 cannot be used
    assert lines("b.json", 1, 6) == [6]
    assert lines("b.json", 1, 8) == [6]  # inside the row that begins at line 6


def test_a_line_that_is_not_there():
    with pytest.raises(UserError, match=r"a\.jsonl: no row begins at line 200; the last row begins at line 100"):
        choose("a.jsonl", Reading(), 1, 200)
    with pytest.raises(UserError, match=r"--line 3: \. is 2 files"):
        choose(".", Reading(), 1, 3)


def test_several_files_and_a_part_of_one():
    assert lines("a.jsonl", 9)[-3:] == [9, 10, 11]
    Path("a.jsonl").write_text("".join(Path("a.jsonl").read_text().splitlines(keepends=True)[:4]))
    assert lines(".", 6) == [1, 2, 3, 4, 2, 6]


def test_a_part_of_a_file():
    part = lines("a.jsonl#10", 10)
    assert len(part) == 10 and part == sorted(part) and part != list(range(1, 11))


def test_no_more_is_read_than_is_shown(monkeypatch):
    import tunesmith.data.look.chosen as module

    taken = []
    whole = module.read_samples

    def counted(*words):
        for sample in whole(*words):
            taken.append(sample)
            yield sample

    monkeypatch.setattr(module, "read_samples", counted)
    choose("a.jsonl", Reading(), 3)
    assert len(taken) == 3


def test_many_bad_rows_end_the_search():
    Path("c.jsonl").write_text('{"prompt": "q", "completion": ""}\n' * 100 + '{"prompt": "q", "completion": "a"}\n')
    assert len(choose("c.jsonl", Reading(), 1)) == 20
