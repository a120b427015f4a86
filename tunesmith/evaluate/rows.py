"""Rows that a model's chat template refuses are named together, not one at a time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from tunesmith.data.sample import RowError
from tunesmith.errors import UserError

SHOWN = 20  # rows named in an error


class _Row(Protocol):
    @property
    def origin(self) -> str: ...


R = TypeVar("R", bound=_Row)


def each(rows: Iterable[R], make: Callable[[R], Any]) -> list[Any]:
    """`make` of every row. Raises UserError naming the rows for which it raised RowError."""
    rows = list(rows)
    made: list[Any] = []
    for row in rows:
        try:
            made.append(make(row))
        except RowError as error:
            made.append(error)
    return usable(rows, made, "the model's chat template refuses these rows: mend them or leave them out")


def usable(rows: Sequence[R], made: Sequence[Any], why: str) -> list[Any]:
    """What was made of the rows. Raises UserError where a row's place holds a RowError, with all those rows, and why."""
    refused = [f"{row.origin}: {error}" for row, error in zip(rows, made, strict=True) if isinstance(error, RowError)]
    if refused:
        more = [f"and {len(refused) - SHOWN} more rows"] if len(refused) > SHOWN else []
        raise UserError(*refused[:SHOWN], *more, why)
    return list(made)
