"""Rows that differ in length, and files of them, for the tests of what tokenises."""

import json
from pathlib import Path
from typing import Any


def row(number: int) -> dict[str, str]:
    return {"prompt": f"Question {number}" + "?" * (number % 7), "completion": f"Answer {number}" + " so" * (number % 5)}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows))
    return path
