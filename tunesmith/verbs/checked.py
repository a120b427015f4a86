"""The report of `data check` as a person reads it: a table, bars and colours in a terminal, plain lines elsewhere."""

import sys
from pathlib import Path
from typing import Any

BIG = 8 << 20  # bytes of a file that is worth a progress bar
SHOWN = 5  # runs of lines named in a sentence; --json names all
TOP = 20  # labels drawn
BAR = 40  # characters


class Reached:
    """How far the reading has come, on stderr, where that is a terminal and the file is long; called with (file, line, rows)."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.bar: Any = None
        self.file: Any = None
        self.task: Any = None

    def __enter__(self) -> "Reached":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, file: Any, line: int, rows: int) -> None:
        if not self.console.is_terminal:
            return
        if file is not self.file:
            self.file = file
            self._begin(file)
        if self.task is not None:
            self.bar.update(self.task, completed=line, rows=f"{rows:,} rows")

    def _begin(self, file: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
        if file.path is None or not file.path.is_file() or file.path.stat().st_size < BIG:
            return
        if self.bar is None:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TextColumn("{task.fields[rows]}"),
                TimeElapsedColumn(), TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self.bar.start()
        self.task = self.bar.add_task(file.name, total=_lines(file.path), rows="")


def _lines(path: Path) -> int | None:
    """Line ends in a text file; None where the lines of its rows are not those of its bytes."""
    ends = 0
    with open(path, "rb") as file:
        head = file.read(4)
        if head[:2] in (b"\x1f\x8b", b"PA", b"%P", b"AR", b"\xff\xfe", b"\xfe\xff"):  # gzip, parquet, pdf, arrow, UTF-16
            return None
        while chunk := file.read(1 << 20):
            ends += chunk.count(b"\n")
    return ends if ends > 1 else None


def print_checked(found: list[Any]) -> None:
    """Print the report on each file to stdout."""
    from rich.console import Console
    from rich.text import Text

    from tunesmith.data.look.lengths import RULE

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if sys.stdout.isatty():
        _table(found, console)
        for checked in found:
            _terminal(checked, console)
        if any(checked.report.good and not checked.lengths.exact for checked in found):
            console.print(Text(f"tokens are estimated: {RULE}", "bright_black"))
        return
    for checked in found:
        _plain(checked)


def _plain(checked: Any) -> None:
    from tunesmith.data.sources import listed

    report = checked.report
    kind = ", ".join(filter(None, (report.format, report.encoding)))
    print(f"{report.file}: {report.good:,} of {report.rows:,} rows usable" + (f" ({kind})" if kind else ""))
    for line in listed(report.bad):
        print(line)
    if report.good:
        print(f"{report.file}: {_figures(checked)}")
    if shared := checked.begun.said():
        print(f"{report.file}: {shared}")
    for warning in checked.warnings(SHOWN):
        print(f"{report.file}: note: {warning}")


def _figures(checked: Any) -> str:
    """Lengths and the share that is learned, in one sentence."""
    lengths = checked.lengths
    about = "" if lengths.exact else "about "
    share = lengths.learned / max(1, lengths.all)
    half, most, nearly = (lengths.percentile(share) for share in (0.5, 0.9, 0.99))
    return (
        f"{about}{lengths.tokens:,} tokens, {share:.0%} of the {'tokens' if lengths.exact else 'characters'} learned; "
        f"rows of {about}{half:,} tokens (median), {most:,} (90 %), {nearly:,} (99 %), {lengths.longest:,} (longest)"
    )


def _table(found: list[Any], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("file", "shape", "encoding"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "usable", "bad"):
        table.add_column(column, justify="right", no_wrap=True)
    for checked in found:
        report = checked.report
        bad = Text(f"{len(report.bad):,}", "bold red" if report.bad else "green")
        table.add_row(Text(report.file), report.format, report.encoding, f"{report.rows:,}", f"{report.good:,}", bad)
    console.print(table, soft_wrap=False)


def _terminal(checked: Any, console: Any) -> None:
    from rich.text import Text

    from tunesmith.data.sources import listed

    report = checked.report
    console.print()
    console.print(Text(report.file, "bold"))
    for line in listed(report.bad):
        console.print(Text(line, "red"))
    for warning in checked.warnings(SHOWN):
        console.print(Text.assemble(("! ", "yellow"), warning))
    if report.good:
        console.print(Text(_figures(checked)))
        if shared := checked.begun.said():
            console.print(Text(shared))
        _draw_lengths(checked.lengths, console)
    if labels := checked.labels:
        _draw_labels(labels, console)


def _draw_lengths(lengths: Any, console: Any) -> None:
    from rich.text import Text

    from tunesmith.data.look.histogram import bins, draw, edges

    borders = edges(lengths.longest, lengths.limit.max_length)
    for line in draw(bins(lengths.rows, borders), borders, lengths.limit.max_length, _width(console), _blocks(console)):
        console.print(Text(line, "yellow" if "data.max_length" in line else "cyan"))


def _draw_labels(labels: Any, console: Any) -> None:
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    from tunesmith.data.look.histogram import bar

    shown = labels.most_common(TOP)
    wide = min(40, max(cell_len(repr(label)) for label, _ in shown))
    for label, rows in shown:
        drawn = bar(rows / shown[0][1], _width(console), _blocks(console))
        console.print(
            Text(f"{set_cell_size(repr(label), wide)} {drawn:<{_width(console)}} {rows:>8,} {rows / labels.total():>6.1%}", "magenta")
        )
    if len(labels) > len(shown):
        console.print(f"and {len(labels) - len(shown):,} more labels")


def _width(console: Any) -> int:
    return max(10, min(BAR, console.width - 45))


def _blocks(console: Any) -> bool:
    return console.encoding.lower().startswith("utf")
