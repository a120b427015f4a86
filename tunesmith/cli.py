"""`tunesmith VERB ...`: the verbs, and what their errors become. A verb's file is imported only when it is called, so that
`--help` answers at once.

Exit codes: 0 done; 1 our fault, with a report file; 2 the user can mend it; 3 a gate or proof failed; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import importlib
import os
import platform
import sys
import tempfile
import traceback

from tunesmith import __version__
from tunesmith.errors import Interrupted, UserError

VERBS = {
    "quickstart": "the whole story on this machine in minutes: before, training, after",
    "train": "tune a model on a file of examples",
    "resume": "go on exactly where a run stopped",
    "data": "look at data: check files, show the tokens that are learned",
    "evaluate": "scores of a run, an adapter or a base model on data",
    "chat": "talk to a run, an adapter or a base model",
    "merge": "fold an adapter into its base model's own weights",
    "doctor": "what this machine has, what is missing, and the cure",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    verb = next((word for word in given if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="tunesmith",
        description="Fine-tune large language models, with proofs.",
        epilog="`tunesmith VERB --help` tells more. A first look: tunesmith quickstart",
    )
    parser.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, sentence in VERBS.items():
        sub = verbs.add_parser(name, help=sentence, description=sentence, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == verb:
            _module(name).add_arguments(sub)
    if verb is None or verb not in VERBS:
        if verb is None and not given:
            parser.print_help()
            return 0
        if verb is not None:
            return _refuse_verb(verb)
    try:
        parsed = parser.parse_args(given)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _guarded(verb or "", parsed)


def _guarded(verb: str, parsed: argparse.Namespace) -> int:
    try:
        return int(_module(verb).run(parsed))
    except UserError as error:
        sys.stdout.flush()
        for number, problem in enumerate(error.problems):
            print(f"tunesmith: {problem}" if number == 0 else f"  {problem}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(f"tunesmith: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("tunesmith: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what reads us has gone; flushing at exit must not fail
        return 0
    except Exception as error:  # noqa: BLE001  our fault, whatever it is
        return _our_fault(error)


def _our_fault(error: Exception) -> int:
    """A report file with the traceback and the versions; secrets in the environment are not written."""
    lines = [f"tunesmith {__version__}, Python {platform.python_version()}, {platform.platform()}", "command: " + " ".join(sys.argv), ""]
    descriptor, path = tempfile.mkstemp(prefix="tunesmith-report-", suffix=".txt")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "".join(traceback.format_exception(error)))
    print(f"tunesmith: this is our fault: {type(error).__name__}: {error}\n  the report is in {path}", file=sys.stderr)
    return 1


def _refuse_verb(verb: str) -> int:
    from tunesmith.config import nearest

    print(f"tunesmith: no verb {verb!r}{nearest(verb, list(VERBS))}; there are {', '.join(VERBS)}", file=sys.stderr)
    return 2


def _module(verb: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"tunesmith.verbs.{verb}")
