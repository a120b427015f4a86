from types import SimpleNamespace

import pytest

from tunesmith.data.sample import RowError
from tunesmith.errors import UserError
from tunesmith.evaluate.rows import each


def odd(row):
    if row.value % 2 == 0:
        raise RowError(f"{row.value} is even")
    return row.value


def test_rows_that_fail_are_named_together():
    rows = [SimpleNamespace(origin=f"f:{i}", value=i) for i in range(1, 50)]
    assert each(rows[::2], odd) == list(range(1, 50, 2))
    with pytest.raises(UserError) as error:
        each(rows, odd)
    assert error.value.problems[0] == "f:2: 2 is even"
    assert len(error.value.problems) == 22 and error.value.problems[20] == "and 4 more rows"


def test_other_errors_are_ours():
    with pytest.raises(AttributeError):
        each([SimpleNamespace(origin="f:1")], odd)
