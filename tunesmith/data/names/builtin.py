"""Data that the project makes itself, reached as `builtin:NAME` wherever a data path is taken."""

from collections.abc import Callable
from typing import Any

from tunesmith.data.names import tickets

BUILTIN: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "tickets": tickets.train_rows,
    "tickets-test": tickets.test_rows,
}
