"""`tunesmith import-config FILE`: the settings of another program as a RUN.yaml, and what became of every key."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.imports import TOOLS
from tunesmith.imports.translation import Translation
from tunesmith.run_yaml import parse_yaml

FEW = 2  # keys of a program by which a file is taken for its


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a YAML or JSON of LLaMA-Factory, Axolotl or ms-swift")
    parser.add_argument("--out", metavar="RUN.yaml", help="where the run file is written; without it, it is printed")


def run(arguments: argparse.Namespace) -> int:
    """0: a run file that `tunesmith train` takes. Raises UserError where there is none, with the reasons."""
    path = Path(arguments.file)
    given, lines = _read(path)
    t = translated(path, given, lines)
    report = said(t)
    if t.refused:
        raise UserError(f"{path}: {t.tool}'s settings make no run here", *t.refused, *([""] if report else []), *report)
    overrides = [(key, value, t.origins[key]) for key, value in t.settings.items()]
    loaded = config.load(None, overrides)
    text = _head(path, t) + config.dump(loaded.run, loaded.origins)
    if arguments.out:
        _write(Path(arguments.out), text)
    else:
        print(text, end="")
    for line in report:
        print(line, file=sys.stderr)
    print(f"next: tunesmith train {arguments.out or 'RUN.yaml'} --dry-run", file=sys.stderr)
    return 0


def translated(path: Path, given: dict[str, Any], lines: dict[str, int]) -> Translation:
    """The file's settings as ours, by the program that it is of. Raises UserError where that is none we know."""
    signs = {name: len(set(module.SIGNS.split()) & set(given)) for name, module in TOOLS.items()}
    best = max(signs, key=lambda name: signs[name])
    if signs[best] < FEW:
        if set(given) & {"model", "data", "method"} and all(key in config.Run.model_fields for key in given):
            raise UserError(f"{path}: this is a run file of ours already: tunesmith train {path}")
        known = ", ".join(module.NAME for module in TOOLS.values())
        raise UserError(f"{path}: not recognised as a file of {known}; its keys are {', '.join(list(given)[:12]) or 'none'}")
    t = Translation(TOOLS[best].NAME, given, lines)
    TOOLS[best].translate(t)
    return t


def said(t: Translation) -> list[str]:
    """What became of every key, a heading and a line each."""
    result = [f"a file of {t.tool}: {len(t.given)} keys"]
    headings = {
        "carried over": t.carried,
        "carried over, changed in meaning": t.changed,
        "not needed here": t.needless,
        "NOT carried over": t.left,
    }
    for heading, items in headings.items():
        if items:
            result += ["", f"{heading}:", *(f"  {item}" for item in items)]
    return [*result, "", f"off there, so that nothing is lost: {', '.join(t.off)}"] if t.off else result


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's values, and the lines of its keys. A JSON file has its lines too, being YAML but for tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not text.lstrip().startswith("{"):
        return parse_yaml(text, str(path))
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    return (value, {}) if isinstance(value, dict) else parse_yaml(text, str(path))


def _head(path: Path, t: Translation) -> str:
    """Comments above the settings: where they came from, and what did not come along."""
    lines = [f"made from {path.name}, a file of {t.tool}; behind each setting stands the key that it came from"]
    for heading, items in (("changed in meaning", t.changed), ("not carried over", t.left)):
        lines += [f"{heading}:", *(f"  {item}" for item in items)] if items else []
    return "".join(f"# {' '.join(line.split()) if not line.startswith('  ') else '  ' + ' '.join(line.split())}\n" for line in lines)


def _write(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{path}: is there already and is not overwritten: choose another --out, or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
