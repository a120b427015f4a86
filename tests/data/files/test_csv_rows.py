import pytest

from tunesmith.data.files.csv_rows import rows
from tunesmith.data.files.row import Row
from tunesmith.data.sample import FileReport


def read(text, **how):
    report = FileReport("a.csv")
    found = list(rows(text.splitlines(keepends=True), "a.csv", report, **how))
    return [row.values if isinstance(row, Row) else (row.line, row.reason) for row in found], report.warnings


def test_a_name_of_tabs_decides_where_commas_would_fit_too():
    text = "a,b\tc,d\n1,2\t3,4\n"
    assert read(text, tabs=True)[0] == [{"a,b": "1,2", "c,d": "3,4"}]
    assert read("a,b\n1,2\n", tabs=True)[0] == [{"a": "1", "b": "2"}]


def test_cells_stay_texts():
    assert read("id,label\n9007199254740993,NA\n007,\n1.0,TRUE\n")[0] == [
        {"id": "9007199254740993", "label": "NA"},
        {"id": "007", "label": ""},
        {"id": "1.0", "label": "TRUE"},
    ]


def test_a_zero_byte_in_a_cell_survives():
    assert read("a,b\nx\0y,z\n")[0] == [{"a": "x\0y", "b": "z"}]


@pytest.mark.parametrize("text", ["", "\n\n", "sep=;\n"])
def test_nothing_is_no_rows(text):
    assert read(text) == ([], [])
