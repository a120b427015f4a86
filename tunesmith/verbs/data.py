"""`tunesmith data check FILE...` reports on files; `tunesmith data show FILE` prints what is learned, token by token."""

import argparse
import datetime
import sys
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.run_yaml import parse_value

HELP = "look at data: check files, show the tokens that are learned"


MODEL, ROWS = "builtin:smollm2-135m-instruct", 3  # of `data show`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check` or `show`, files, flags; one parser for both, so that words and flags may stand in any order."""
    parser.add_argument("data_verb", choices=["check", "show"], help="which rows can be used and why not; the tokens that are learned")
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder, glob or builtin:NAME; data.KEY=VALUE as in train")
    parser.add_argument("--json", action="store_true", help="check: print one JSON document")
    parser.add_argument("--model", metavar="M", help=f"show: whose tokenizer and chat template (default: {MODEL})")
    parser.add_argument("-n", type=int, help=f"show: how many rows (default: {ROWS})")
    parser.add_argument("--served", action="store_true", help="show: what a server would feed, too")


def run(arguments: argparse.Namespace) -> int:
    """0: every row is usable. 2: some are not. Raises UserError."""
    others = {"check": ("model", "n", "served"), "show": ("json",)}[arguments.data_verb]
    if misplaced := [name for name in others if getattr(arguments, name) not in (None, False)]:
        flags = ", ".join(f"-{name}" if len(name) == 1 else f"--{name}" for name in misplaced)
        raise UserError(f"data {arguments.data_verb} does not take {flags}")
    sources, data = _settings(arguments.files)
    return _check(sources, data, arguments.json) if arguments.data_verb == "check" else _show(sources, data, arguments)


def _check(sources: list[str], data: config.Data, as_json: bool) -> int:
    from tunesmith.data import check
    from tunesmith.data.sources import understand

    reports = check.check(sources, understand(data.format, data.columns, data.prompt, guess=True))
    if as_json:
        print(check.as_json(reports))
    else:
        _print(reports)
    return 2 if any(report.bad for report in reports) else 0


def _show(sources: list[str], data: config.Data, arguments: argparse.Namespace) -> int:
    if len(sources) > 1:
        raise UserError("data show looks at one source; name one file, folder, glob or builtin:NAME")
    from tunesmith.data.sources import load_samples

    # rows that cannot be used are seen before a tokenizer is fetched
    samples, _ = load_samples(sources[0], format=data.format, columns=data.columns, prompt=data.prompt, on_bad_row=data.on_bad_row)

    from tunesmith.data.render import Renderer
    from tunesmith.data.show import show
    from tunesmith.models.load import load_config, load_tokenizer, stop_ids
    from tunesmith.models.source import locate

    folder = locate(arguments.model or MODEL).folder
    date = datetime.date.today().isoformat() if data.date == "today" else data.date
    renderer = Renderer(load_tokenizer(folder), thinking=data.thinking, date=date, stop_ids=stop_ids(folder, load_config(folder)))
    rows = ROWS if arguments.n is None else arguments.n
    return show(samples, renderer, rows, max_length=data.max_length, on_overlength=data.on_overlength, served=arguments.served)


def _settings(words: list[str]) -> tuple[list[str], config.Data]:
    """Sources, and the data section that the `data.KEY=VALUE` words among them make."""
    sources, overrides = [], []
    for word in words:
        key, mark, value = word.partition("=")
        if mark and key.startswith("data."):
            overrides.append((key, parse_value(value), word))
        else:
            sources.append(word)
    if not sources:
        raise UserError("no file named: tunesmith data check FILE...")
    return sources, config.load(None, overrides).run.data


def _print(reports: list[Any]) -> None:
    """A table for a terminal; one plain line a file, row and warning elsewhere."""
    from tunesmith.data.sources import listed

    if sys.stdout.isatty():
        _table(reports)
    for report in reports:
        if not sys.stdout.isatty():
            print(f"{report.file}: {report.good:,} of {report.rows:,} rows usable" + _kind(report))
        for line in listed(report.bad):
            print(line)
        for warning in report.warnings:
            print(f"{report.file}: note: {warning}")


def _kind(report: Any) -> str:
    return f" ({', '.join(filter(None, (report.format, report.encoding)))})" if report.format or report.encoding else ""


def _table(reports: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("file", "shape", "encoding"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "usable", "bad"):
        table.add_column(column, justify="right")
    for report in reports:
        style = "red" if report.bad else "green"
        bad = f"[{style}]{len(report.bad):,}[/]"
        table.add_row(escape(report.file), report.format, report.encoding, f"{report.rows:,}", f"{report.good:,}", bad)
    Console().print(table)
