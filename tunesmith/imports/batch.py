"""Rows of a batch become tokens of a step: here a step is counted in tokens, so that packing and long rows do not change it.

A batch of packed rows holds exactly rows x length tokens. Rows that are padded hold as many tokens as they are long, which only
the data can say: where it can be read, its rows are measured; where not, the product is an upper bound, and that is said.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.look.lengths import estimated
from tunesmith.data.names import info as books
from tunesmith.data.names import splits
from tunesmith.data.names.resolve import resolve
from tunesmith.data.sample import BadRow, FileReport, RowError
from tunesmith.data.sources import Reading, read_samples, understand
from tunesmith.errors import UserError
from tunesmith.imports.translation import Translation

MEASURED = 1000  # rows of each source
COUNTED = 100_000  # rows of each source; a second or two
SMALLEST = 64  # tokens of a step


@dataclass(frozen=True, slots=True)
class Measured:
    """What a look at the data tells: rows of each source (None: more than were counted), and tokens of the mean row, about."""

    rows: tuple[int | None, ...]
    mean: float
    bad: tuple[BadRow, ...] = ()  # rows that cannot be used


def measure(t: Translation, max_length: int) -> Measured | str:
    """A look at the training data that the translation names, or why it was not looked at."""
    train = t.settings.get("data.train")
    sources = [each["source"] for each in train] if isinstance(train, list) else [train] if train else []
    info = t.settings.get("data.info", "auto")
    reports: list[FileReport] = []
    try:
        if far := [source for source in sources if not _is_here(source, info)]:
            return f"{far[0]} lies on a hub"
        reading = understand(t.settings.get("data.format", "auto"), t.settings.get("data.columns"), t.settings.get("data.prompt"))
        counted = [_look(source, reading, info, max_length, reports) for source in sources]
    except (UserError, OSError) as error:
        return str(error).splitlines()[0]
    lengths = [length for _, found in counted for length in found]
    if not lengths:
        return "no usable row was found" if sources else "no data is named"
    bad = [row for report in reports for row in report.bad]
    return Measured(tuple(rows for rows, _ in counted), sum(lengths) / len(lengths), tuple(bad))


def _is_here(source: str, info: str) -> bool:
    """Whether a source lies on this machine: nothing is fetched to translate settings."""
    name = source.rpartition("#")[0] or source
    book = books.load(info)
    if book is not None and name in book.entries:
        return books.entry(book, name).kind == "file"
    return name.startswith("builtin:") or splits.parse(name) is None or Path(name).expanduser().exists()


def _look(source: str, reading: Reading, info: str, max_length: int, reports: list[FileReport]) -> tuple[int | None, list[int]]:
    """How many rows a source has, if not too many to count, and the lengths of the first ones in tokens, cut at `max_length`."""
    found = resolve(source, info)
    begun = [FileReport(file.name) for file in found.files]
    reports += begun
    samples = itertools.chain.from_iterable(read_samples(file, reading, report) for file, report in zip(found.files, begun, strict=True))
    first = list(itertools.islice(samples, MEASURED))
    more = sum(1 for _ in itertools.islice(samples, COUNTED - len(first)))
    rows = None if len(first) + more == COUNTED else len(first) + more
    lengths = [length.tokens for length in estimated(first) if not isinstance(length, RowError)]
    if found.rows is not None and (rows is None or found.rows < rows):
        rows = found.rows
    return rows, [min(length, max_length) for length in lengths]


def tokens_per_step(t: Translation, rows_key: str, usual_rows: int, length_key: str, usual: int, packed: bool) -> Measured | str:
    """Set `data.max_length` and `train.tokens_per_step`; what was seen of the data, for others that need it."""
    length = int(t.number(length_key) or usual)
    t.put("data.max_length", length, *([length_key] if t.given.get(length_key) else []))
    rows = int(t.number(rows_key) or usual_rows)
    steps = int(t.number("gradient_accumulation_steps") or 1)
    keys = [key for key in (rows_key, "gradient_accumulation_steps", length_key) if key in t.given]
    seen = measure(t, length)
    product = f"{rows} rows x {steps} accumulated"
    devices = "; for one device: multiply by as many as you had"
    if packed:
        tokens, why = rows * steps * length, f"{product} x {length} tokens of a packed row{devices}"
    elif isinstance(seen, Measured):
        tokens = max(SMALLEST, round(rows * steps * seen.mean))
        why = f"{product} x about {seen.mean:.0f} tokens of a row (the data's own rows, estimated; a step holds tokens, not rows){devices}"
    else:
        tokens = rows * steps * length
        cure = "which rows seldom reach: lower it to their usual length, or leave it at auto"
        why = f"{product} x {length} tokens, the longest row, {cure} (the data was not looked at: {seen}){devices}"
    t.put("train.tokens_per_step", tokens, *keys, said=why)
    return seen
