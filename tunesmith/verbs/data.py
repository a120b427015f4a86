"""`tunesmith data check FILE...` reports on files; `tunesmith data show FILE` prints what is learned, token by token."""

import argparse
import datetime
from typing import Any, Literal

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.run_yaml import parse_value

HELP = "look at data: check files, show the tokens that are learned"


MODEL, ROWS = "builtin:smollm2-135m-instruct", 3  # of `data show`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`check` or `show`, files, flags; one parser for both, so that words and flags may stand in any order."""
    parser.add_argument("data_verb", choices=["check", "show"], help="which rows can be used and why not; the tokens that are learned")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="file, folder, glob, a name in data.info, a hub id or builtin:NAME; data.KEY=VALUE as in train, and show: task.KEY=VALUE",
    )
    parser.add_argument("--json", action="store_true", help="check: print one JSON document")
    parser.add_argument(
        "--model", metavar="M", help=f"whose tokenizer and chat template (show: {MODEL} by default; check: lengths are estimated without)"
    )
    parser.add_argument("-n", type=int, help=f"show: how many rows (default: {ROWS})")
    parser.add_argument("--line", type=int, metavar="L", help="show: the row that stands at this line, and the ones after it")
    parser.add_argument("--served", action="store_true", help="show: what a server would feed, beside it")


def run(arguments: argparse.Namespace) -> int:
    """0: every row is usable. 2: some are not. Raises UserError."""
    others = {"check": ("n", "line", "served"), "show": ("json",)}[arguments.data_verb]
    if misplaced := [name for name in others if getattr(arguments, name) not in (None, False)]:
        flags = ", ".join(f"-{name}" if len(name) == 1 else f"--{name}" for name in misplaced)
        raise UserError(f"data {arguments.data_verb} does not take {flags}")
    sources, data, task = _settings(arguments.files, arguments.data_verb)
    return _check(sources, data, arguments) if arguments.data_verb == "check" else _show(sources, data, task, arguments)


def _check(sources: list[str], data: config.Data, arguments: argparse.Namespace) -> int:
    from tunesmith.data.look import check
    from tunesmith.data.look.lengths import Limit, tokenised
    from tunesmith.verbs.checked import Reached, print_checked

    reading = _understand(data, guess=True)
    measure = special = None
    if arguments.model:
        renderer = _renderer(arguments.model, data)
        measure, special = tokenised(renderer), renderer.encoder.find
    limit = Limit(data.max_length, data.on_overlength)
    with Reached() as reached:
        found = check.check(sources, reading, limit, info=data.info, measure=measure, special=special, progress=reached)
    if arguments.json:
        print(check.as_json(found))
    else:
        print_checked(found)
    return 2 if any(checked.report.bad for checked in found) else 0


def _show(sources: list[str], data: config.Data, task: config.Task, arguments: argparse.Namespace) -> int:
    if len(sources) > 1:
        raise UserError("data show looks at one source; name one file, folder, glob or builtin:NAME")
    rows = ROWS if arguments.n is None and arguments.line is None else 1 if arguments.n is None else arguments.n
    if rows < 1:
        raise UserError(f"-n {rows}: how many rows to show, 1 or more")
    from tunesmith.data.look.chosen import choose

    # rows that cannot be used are seen before a tokenizer is fetched
    chosen = choose(sources[0], _understand(data), rows, arguments.line, data.info)

    from tunesmith.data.look import show_labels
    from tunesmith.data.look.show import show

    renderer = _renderer(arguments.model or MODEL, data)
    if task.name in ("classify", "tag") and not (task.name == "classify" and task.head == "words"):
        if arguments.served:
            raise UserError("--served: a server writes answers; labels of a head are predicted here (leave it or task.name out)")
        given: Literal["text", "chat"] = "chat" if task.input == "chat" else "text"
        return show_labels.show(chosen, renderer, task.name, given, max_length=data.max_length, on_overlength=data.on_overlength)
    return show(chosen, renderer, max_length=data.max_length, on_overlength=data.on_overlength, served=arguments.served)


def _understand(data: config.Data, guess: bool = False) -> Any:
    from tunesmith.data.sources import understand

    return understand(data.format, data.columns, data.prompt, guess, data.encoding, data.documents)


def _renderer(model: str, data: config.Data) -> Any:
    from tunesmith.data.rendering.render import Renderer
    from tunesmith.models.load import load_config, load_tokenizer, stop_ids
    from tunesmith.models.source import locate

    folder = locate(model).folder
    date = datetime.date.today().isoformat() if data.date == "today" else data.date
    return Renderer(load_tokenizer(folder), thinking=data.thinking, date=date, stop_ids=stop_ids(folder, load_config(folder)))


def _settings(words: list[str], verb: str) -> tuple[list[str], config.Data, config.Task]:
    """Sources, and the sections that the `data.KEY=VALUE` and `task.KEY=VALUE` words among them make."""
    sources, overrides = [], []
    for word in words:
        key, mark, value = word.partition("=")
        if mark and key.startswith("task.") and verb == "check":
            raise UserError(f"{word}: data check looks at rows, whatever is learned from them; data show takes it")
        if mark and key.startswith(("data.", "task.")):
            overrides.append((key, parse_value(value), word))
        else:
            sources.append(word)
    if not sources:
        raise UserError(f"no file named: tunesmith data {verb} FILE{'...' if verb == 'check' else ''}")
    run = config.load(None, overrides).run
    return sources, run.data, run.task
