"""`tunesmith VERB ...`: the verbs, and what their errors become. A verb's file is imported only when it is called, so that
`--help` answers at once.

Exit codes: 0 done; 1 our fault, with a report file; 2 the user can mend it; 3 a gate or proof failed; 130 Ctrl-C; 143 SIGTERM.
"""

import argparse
import errno
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
    "export": "files for peft, transformers, llama.cpp, Ollama, vLLM or TGI, opened by the program that will serve them",
    "serve": "answer the OpenAI API: one base, many adapters, chosen by name",
    "import-config": "a file of LLaMA-Factory, Axolotl or ms-swift as a run file, with what could not be carried over",
    "doctor": "what this machine has, what is missing, and the cure",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = next((i for i, word in enumerate(given) if not word.startswith("-")), None)
    try:
        if at is None:
            _overview().parse_args(given or ["--help"])
            return 0
        verb = given.pop(at)
        if verb not in VERBS:
            return _refuse_verb(verb)
        return _guarded(verb, given)
    except SystemExit as stop:  # argparse, after its own message
        return int(stop.code or 0)


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tunesmith",
        usage="tunesmith VERB ... [--help]",
        description="Fine-tune large language models, with proofs.",
        epilog="verbs:\n"
        + "\n".join(f"  {verb:<13} {sentence}" for verb, sentence in VERBS.items())
        + "\n\n`tunesmith VERB --help` tells more. A first look: tunesmith quickstart",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tunesmith {__version__}")
    return parser


def _parse(verb: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"tunesmith {verb}", description=VERBS[verb], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _module(verb).add_arguments(parser)
    try:
        return parser.parse_intermixed_args(words)  # KEY=VALUE may stand between flags
    except TypeError:  # a verb with verbs of its own, such as `data check`, cannot be read that way
        return parser.parse_args(words)


def _guarded(verb: str, words: list[str]) -> int:
    try:
        code = int(_module(verb).run(_parse(verb, words)))
        sys.stdout.flush()  # where nobody reads any more, let it be noticed here and not while the interpreter ends
        return code
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
    except Exception as error:  # our fault, whatever it is
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"tunesmith: {error.filename or 'writing'}: the disk is full; what was saved before is whole", file=sys.stderr)
            return 2
        return _our_fault(error)


def _our_fault(error: Exception) -> int:
    """A report file with the traceback and the versions; secrets in the environment are not written."""
    lines = [f"tunesmith {__version__}, Python {platform.python_version()}, {platform.platform()}", "command: " + " ".join(sys.argv), ""]
    text = "\n".join(lines) + "".join(traceback.format_exception(error))
    print(f"tunesmith: this is our fault: {type(error).__name__}: {error}", file=sys.stderr)
    try:
        descriptor, path = tempfile.mkstemp(prefix="tunesmith-report-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        print(f"  the report is in {path}", file=sys.stderr)
    except OSError as refused:
        print(f"  a report file could not be written ({refused.strerror}); this is the report:\n{text}", file=sys.stderr)
    return 1


def _refuse_verb(verb: str) -> int:
    from tunesmith.config import nearest

    print(f"tunesmith: no verb {verb!r}{nearest(verb, list(VERBS))}; there are {', '.join(VERBS)}", file=sys.stderr)
    return 2


def _module(verb: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"tunesmith.verbs.{verb.replace('-', '_')}")
