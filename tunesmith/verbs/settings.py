"""What `train` and its kin read from the command line: RUN.yaml, a few named flags, and KEY=VALUE for every setting."""

import argparse
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.run_yaml import parse_value

# flag -> (key, metavar, help)
FLAGS = {
    "--model": ("model.source", "M", "folder, .gguf file, hub id or builtin:smollm2-135m-instruct"),
    "--data": ("data.train", "D", "file, folder, glob, PATH#500 or builtin:tickets"),
    "--method": ("method", "NAME", ", ".join(config.METHOD_NAMES[1:])),
    "--out": ("out", "DIR", "run folder"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN.yaml, the flags, KEY=VALUE; the help ends with the table of every setting."""
    parser.add_argument(
        "words", nargs="*", metavar="RUN.yaml|KEY=VALUE", help="a run file, and settings such as method.rank=16 train.steps=60"
    )
    for flag, (key, metavar, sentence) in FLAGS.items():
        parser.add_argument(flag, dest=key, metavar=metavar, help=f"{key}: {sentence}")
    parser.epilog = _table()


@cache
def _table() -> str:
    return "settings (KEY, default):\n" + "\n".join(f"  {row.key:<28} {row.default:<10} {row.sentence}" for row in config.table())


def read(arguments: argparse.Namespace) -> config.Loaded:
    """The run that the command line asks for. Raises UserError with every misfit at once."""
    files = [word for word in arguments.words if "=" not in word]
    problems = [f"{word}: one run file at most, and settings are written KEY=VALUE" for word in files[1:]]
    if files and not Path(files[0]).is_file():
        problems.append(f"{files[0]}: no such run file; settings are written KEY=VALUE, data is given with --data")
    if problems:
        raise UserError(*problems)
    overrides: list[tuple[str, Any, str]] = []
    for flag, (key, _, _) in FLAGS.items():
        value = getattr(arguments, key)
        if value is not None:
            overrides.append((key, value, flag))
    for word in arguments.words:
        key, sign, text = word.partition("=")
        if sign:
            overrides.append((key, parse_value(text), word))
    return config.load(Path(files[0]) if files else None, overrides)
