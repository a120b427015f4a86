"""`tunesmith resume DIR`: go on with a run."""

import argparse
import sys
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.run_yaml import parse_value
from tunesmith.verbs import then


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="DIR", help="run folder")
    parser.add_argument("words", nargs="*", metavar="train.steps=N", help="more steps than the run was made for")
    then.add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    steps = _steps(arguments.words)
    from tunesmith.train import loop
    from tunesmith.verbs.progress import follow, summary, to_talk
    from tunesmith.verbs.signals import stopping
    from tunesmith.verbs.telling import tell

    with stopping() as asked:
        finished = follow(loop.resume(arguments.run, steps=steps, stop=asked, tell=tell))
    assert finished is not None
    print(summary(finished, arguments.run))
    if arguments.then:
        return then.do(arguments.then, Path(arguments.run))
    print(f"next: {to_talk(arguments.run)}", file=sys.stderr)
    return 0


def _steps(words: list[str]) -> int | None:
    steps = None
    for word in words:
        key, sign, text = word.partition("=")
        value = parse_value(text) if sign else None
        if key != "train.steps":
            raise UserError(
                f"{word}: a resumed run keeps its settings; only train.steps=N can change",
                "for other settings begin a new run with model.adapter",
            )
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{word}: train.steps is a whole number of at least 1")
        steps = value
    return steps
