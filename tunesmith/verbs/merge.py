"""`tunesmith merge DIR OUT`: an adapter folded into its base model, measured against the adapter itself.
`tunesmith merge --adapters A=0.7 B=0.3 OUT`: several LoRAs of one base made into one."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import ProofFailed, UserError
from tunesmith.verbs.signals import tidying
from tunesmith.verbs.telling import tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "tunesmith merge DIR OUT [--base auto|original|dequantised] [--max-kl X] [--model M]\n"
        "       tunesmith merge --adapters DIR[=WEIGHT] DIR[=WEIGHT] ... [--how concat|linear] OUT"
    )
    parser.add_argument("run", nargs="?", metavar="DIR", help="run folder or adapter folder")
    parser.add_argument("out", nargs="?", metavar="OUT", help="new folder for the merged model, or for the combined adapter")
    parser.add_argument(
        "--adapters", nargs="+", metavar="DIR=WEIGHT", help="LoRAs of one base to make one of, in place of DIR; a weight is 1 by itself"
    )
    parser.add_argument("--how", choices=("concat", "linear"), default="concat", help="exact, ranks add up; or of the same rank, roughly")
    parser.add_argument(
        "--base",
        choices=("auto", "original", "dequantised"),
        default="auto",
        help="of an adapter trained over NF4: the weights that it goes into, the original ones, or what NF4 made of them; "
        "auto takes those that are nearer to the adapter",
    )
    parser.add_argument(
        "--max-kl",
        type=_nats,
        metavar="X",
        help="exit 3 where the merged model is further than this from the adapter (KL divergence, nats)",
    )
    parser.add_argument("--model", metavar="M", help="the base of adapter folders that do not name it, or name it differently")


def _nats(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not value >= 0:  # NaN would refuse every model, once it is written
        raise argparse.ArgumentTypeError(f"{word!r} is no KL divergence; write a number of nats from 0 on, such as 0.01")
    return value


def run(arguments: argparse.Namespace) -> int:
    if arguments.adapters:
        if arguments.out is not None:
            raise UserError(f"with --adapters there is one folder more, for the result: {arguments.run} or {arguments.out}?")
        if arguments.max_kl is not None:
            raise UserError("--max-kl compares a merged model with its adapter; nothing is merged into a base here")
        if arguments.base != "auto":
            raise UserError("--base is for an adapter that goes into its base; nothing is merged into a base here")
        adapters, out = _result(arguments.adapters, arguments.run)
        return combine_run(adapters, arguments.how, Path(out), arguments.model)
    if arguments.run is None:
        raise UserError("DIR is missing, a run folder or an adapter folder: tunesmith merge DIR OUT")
    if arguments.out is None:
        raise UserError("OUT is missing, a new folder for the merged model: tunesmith merge DIR OUT")
    return merge_run(Path(arguments.run), Path(arguments.out), arguments.max_kl, arguments.model, arguments.base)


def merge_run(source: Path, out: Path, max_kl: float | None, model: str | None = None, base: Any = "auto") -> int:
    """Merge, load the result, compare it with the adapter, print and store the difference. Raises UserError, ProofFailed."""
    _new(out)
    from tunesmith.export import bases, merged
    from tunesmith.train.checkpoint import write_whole
    from tunesmith.train.folder import write_json

    found = bases.trial(str(source), base=base, model=model, tell=tell)
    reports: list[Any] = []

    def fill(aside: Path) -> None:
        written = bases.write(found, aside)
        reports.append(merged.prove(found, aside, written))
        write_json(aside / "merge.json", reports[0].facts())

    with tidying():
        write_whole(out, fill)
    [report] = reports
    if (source / "run.yaml").is_file():
        write_json(source / "merge.json", report.facts())
    for number, sentence in enumerate(report.sentences(out)):
        print(sentence, file=sys.stderr if number else sys.stdout)
    if max_kl is not None and not report.apart.worst_kl <= max_kl:
        raise ProofFailed(
            f"{out}: KL {report.apart.worst_kl:.2e} is above --max-kl {max_kl:g}; the folder was written, do not serve it unseen"
        )
    return 0


def _result(adapters: list[str], out: str | None) -> tuple[list[str], str]:
    """The adapters and OUT, which the option takes with them where nothing stands between. Raises UserError where it is missing."""
    if out is not None:
        return adapters, out
    from tunesmith.methods.layouts.adapter_file import CONFIG

    *rest, last = adapters
    if not rest or "=" in last or any((folder / CONFIG).is_file() for folder in (Path(last), Path(last) / "adapter")):
        raise UserError(
            "OUT is missing, a new folder for the combined adapter: tunesmith merge --adapters DIR[=WEIGHT] DIR[=WEIGHT] ... OUT"
        )
    return rest, last


def combine_run(adapters: list[str], how: str, out: Path, model: str | None = None) -> int:
    """One LoRA folder of several, with what `linear` leaves of their sum. Raises UserError with all that cannot be combined."""
    _new(out)
    from tunesmith.export.combined import combine
    from tunesmith.train.checkpoint import write_whole

    files = _weighted(adapters)
    combined = combine(files, how, model)
    write_whole(out, combined.write)
    ranks = "-".join(map(str, combined.ranks[:1] + combined.ranks[1:][-1:]))
    made_of = " + ".join(f"{weight:g} {file.folder}" for file, weight in files)
    print(f"{out}: {made_of} ({how}) as a LoRA of rank {ranks} in {combined.layers} layers")
    for note in combined.notes:
        print(note, file=sys.stderr)
    return 0


def _weighted(adapters: list[str]) -> list[tuple[Any, float]]:
    """(adapter file, weight) of each DIR=WEIGHT. Raises UserError with all that are none."""
    from tunesmith.methods.layouts import layout
    from tunesmith.train.adapter import adapter_folder

    problems: list[str] = []
    found = []
    for each in adapters:
        name, sign, weight = each.rpartition("=")
        if not sign or Path(each).is_dir():
            name, weight = each, "1"
        try:
            found.append((layout.read(adapter_folder(name)), float(weight)))
        except ValueError:
            problems.append(f"{each}: {weight!r} is no number; write DIR=0.7")
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return found


def _new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder")
