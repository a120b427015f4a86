"""Real data sets that lie beside the repository; tests that read them are skipped where they are absent."""

from pathlib import Path
from typing import Any

import pytest

from tunesmith.data.names.resolve import File
from tunesmith.data.sample import FileReport, Sample
from tunesmith.data.sources import read_samples, understand

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


def needs(folder: str) -> Any:
    """Skips a test where the folder is absent."""
    return pytest.mark.skipif(not (SHARED / folder).is_dir(), reason="needs the shared data sets")


def read(name: str, columns: dict[str, str] | None = None) -> tuple[list[Sample], FileReport]:
    """The usable rows of a file, and the report on it. Raises UserError."""
    report = FileReport(name)
    return list(read_samples(File(name, SHARED / name), understand(columns=columns), report)), report
