"""`--then`: what is done with a run's result once it is there. It is refused before the run where it cannot be done."""

import argparse
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.verbs.export import TARGETS

METAVAR = "merge | export:TARGET[:KIND]"


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--then",
        type=_known,
        metavar=METAVAR,
        help=f"what to do with the result: merge writes DIR/merged, export:TARGET writes DIR/export-TARGET ({', '.join(TARGETS)}), "
        "with weights stored as KIND",
    )


def _known(word: str) -> str:
    verb, _, rest = word.partition(":")
    if word == "merge" or (verb == "export" and rest.partition(":")[0] in TARGETS):
        return word
    raise argparse.ArgumentTypeError(f"{word!r} is neither merge nor export: and one of {', '.join(TARGETS)}")


def check(then: str | None, setting: Any) -> None:
    """Raises UserError for what the result of this run (`train.setting.Setting`) will not be able to become."""
    if then is None:
        return
    from tunesmith.methods.method import unmergeable

    method = setting.run.method.name
    if then == "merge":
        if method in ("full", "freeze"):
            raise UserError(f"--then merge: method {method} already gives a whole model in DIR/model")
        if misfit := unmergeable(setting.tuning):
            raise UserError(f"--then merge: {misfit}")
        return
    from tunesmith.export import export
    from tunesmith.export.source import to_be

    target, options = _asked(then)
    out = Path(setting.run.out)
    source = to_be(out, setting.located, setting.tuning, setting.asked.renderer, quantized=setting.run.model.quantize is not None)
    try:
        export.check(target, [source], options)
        export.TARGETS[target].can_prove(options)
    except UserError as error:
        raise UserError(*[f"--then {then}: {problem}" for problem in error.problems]) from None


def do(then: str, out: Path) -> int:
    """Do it with the finished run in `out`. Raises UserError, ProofFailed."""
    if then == "merge":
        from tunesmith.verbs.merge import merge_run

        return merge_run(out, out / "merged", None)
    from tunesmith.verbs.export import export_run

    target, options = _asked(then)
    return export_run([str(out)], target, out / f"export-{target}", options, anew=True)


def _asked(then: str) -> tuple[str, Any]:
    from tunesmith.export.target import Options

    _, target, *kind = then.split(":", 2)
    return target, Options(quantize=kind[0] if kind else None)
