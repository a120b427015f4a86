"""`tunesmith merge DIR OUT`: an adapter folded into its base model, measured against the adapter itself.
`tunesmith merge --adapters A=0.7 B=0.3 OUT`: several LoRAs of one base made into one."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import ProofFailed, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "tunesmith merge DIR OUT [--max-kl X] [--model M]\n"
        "       tunesmith merge --adapters DIR[=WEIGHT] DIR[=WEIGHT] ... [--how concat|linear] OUT"
    )
    parser.add_argument("run", nargs="?", metavar="DIR", help="run folder or adapter folder")
    parser.add_argument("out", nargs="?", metavar="OUT", help="new folder for the merged model, or for the combined adapter")
    parser.add_argument(
        "--adapters", nargs="+", metavar="DIR=WEIGHT", help="LoRAs of one base to make one of, in place of DIR; a weight is 1 by itself"
    )
    parser.add_argument("--how", choices=("concat", "linear"), default="concat", help="exact, ranks add up; or of the same rank, roughly")
    parser.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="exit 3 where the merged model is further than this from the adapter (KL divergence, nats)",
    )
    parser.add_argument("--model", metavar="M", help="the base of adapter folders that do not name it, or name it differently")


def run(arguments: argparse.Namespace) -> int:
    if arguments.adapters:
        if arguments.out is not None:
            raise UserError(f"with --adapters there is one folder more, for the result: {arguments.run} or {arguments.out}?")
        if arguments.max_kl is not None:
            raise UserError("--max-kl compares a merged model with its adapter; nothing is merged into a base here")
        adapters, out = _result(arguments.adapters, arguments.run)
        return combine_run(adapters, arguments.how, Path(out), arguments.model)
    if arguments.run is None:
        raise UserError("DIR is missing, a run folder or an adapter folder: tunesmith merge DIR OUT")
    if arguments.out is None:
        raise UserError("OUT is missing, a new folder for the merged model: tunesmith merge DIR OUT")
    return merge_run(Path(arguments.run), Path(arguments.out), arguments.max_kl, arguments.model)


def merge_run(source: Path, out: Path, max_kl: float | None, model: str | None = None) -> int:
    """Merge, load the result, compare logits on sample prompts, print and store the difference. Raises UserError, ProofFailed."""
    _new(out)
    from tunesmith.export.difference import compare, logits_of, prompts
    from tunesmith.generate import serving
    from tunesmith.methods.method import unmergeable
    from tunesmith.models import load as loading
    from tunesmith.models import slots
    from tunesmith.train.folder import write_json
    from tunesmith.tuned import open_tuned

    def refuse(tuning: Any) -> None:
        if not tuning.adapter:
            whole = f"; its whole model is in {source}/model" if (source / "run.yaml").is_file() else ""
            raise UserError(f"{source} holds no adapter: there is nothing to merge{whole}")
        if misfit := unmergeable(tuning):
            raise UserError(f"{source}: {misfit}")

    tuned = open_tuned(str(source), model=model, refuse=refuse)
    asked = prompts(tuned.tokenizer, tuned.renderer)
    with serving(tuned.model):
        live = logits_of(tuned.model, asked, tuned.head)
    head, written, served = tuned.head, _fold(tuned, out), _served(tuned)
    quantized, dtype, device, base = tuned.base.quantized, tuned.base.dtype, tuned.model.device, tuned.base.folder
    del tuned  # two models at once might not fit

    merged = loading.load(out, dtype=dtype, device=device, own_head=head is None)
    difference = compare(live, logits_of(merged.model, asked, head))
    facts = {
        "changed_tensors": written.changed,
        "tensors": written.tensors,
        "base_weights": "nf4 of the residual" if served else "original",
        "trained_over": "nf4" if quantized else str(dtype).removeprefix("torch."),
        "difference_from_adapter": dataclasses.asdict(difference),
    }
    if served:  # there is another way to hand it over, and it is not the same model
        del merged
        original = loading.load(base, dtype=dtype, device=device).model
        slots.place(original, served)
        with serving(original):
            other = compare(live, logits_of(original, asked, head))
        facts["difference_of_served_lora"] = dataclasses.asdict(other)
    for folder in [out] + ([source] if (source / "run.yaml").is_file() else []):
        write_json(folder / "merge.json", facts)
    print(
        f"{out}: {written.changed} of {written.tensors} tensors changed; against the adapter on {difference.positions} positions: "
        f"KL {difference.mean_kl:.2e} nats, largest logit difference {difference.largest_logit_difference:.2e}, "
        f"top-1 agreement {difference.top1_agreement:.1%}"
    )
    if served:
        print(
            "trained over NF4 codes of a residual, and merged into just those weights; "
            f"its folder, served as a LoRA over the original ones: KL {other.mean_kl:.2e} nats, top-1 agreement {other.top1_agreement:.1%}"
        )
    elif quantized:
        print(
            "the adapter was trained over NF4 weights and is merged into the original ones: "
            "the difference above is that of the quantisation",
            file=sys.stderr,
        )
    if max_kl is not None and not difference.mean_kl <= max_kl:
        raise ProofFailed(
            f"{out}: KL {difference.mean_kl:.2e} is above --max-kl {max_kl:g}; the folder was written, do not serve it unseen"
        )
    return 0


def _fold(tuned: Any, out: Path) -> Any:
    """Write the merged folder; what was written."""
    from transformers.pytorch_utils import Conv1D

    from tunesmith.export.merge import fold
    from tunesmith.models import load as loading
    from tunesmith.train.checkpoint import write_whole
    from tunesmith.train.weights import crown

    folder, modules, prefix = tuned.located.folder, tuned.tuning.adapter, tuned.model.base_model_prefix
    bare = loading.skeleton(loading.load_config(folder))  # over NF4 the model's own Conv1D layers have been exchanged
    transposed = {path: isinstance(bare.get_submodule(path), Conv1D) for path in modules}
    written: list[Any] = []

    def write(aside: Path) -> None:
        written.append(fold(folder, aside, modules, transposed.__getitem__, prefix))
        if tuned.head is not None:
            crown(aside, tuned.model, tuned.head)

    write_whole(out, write)
    return written[0]


def _served(tuned: Any) -> dict[str, Any]:
    """The adapter as servers see it, where that is not what was trained: over codes that NF4 makes of a residual. Else nothing."""
    modules: dict[str, Any] = tuned.tuning.adapter
    if not any(getattr(module, "rounded", None) for module in modules.values()):
        return {}
    return {path: module.as_lora() if hasattr(module, "as_lora") else module for path, module in modules.items()}


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
    from tunesmith.methods.layouts import compose, layout
    from tunesmith.methods.layouts.adapter_file import check_base
    from tunesmith.models import load as loading
    from tunesmith.models.fingerprint import fingerprint
    from tunesmith.models.source import locate
    from tunesmith.train.checkpoint import write_whole
    from tunesmith.train.weights import opened_as

    files = _weighted(adapters)
    combined = compose.HOW[how](files)
    if model is None and (others := compose.other_bases(files)):
        cure = "  where only the names differ, --model M says that M is the base of all"
        raise UserError("only adapters of one base can be combined:", *[f"  {each}" for each in others], cure)
    source = model or combined.base
    if not source:
        raise UserError(f"{files[0][0].folder} does not name its base; give it with --model")
    located = locate(source)
    skeleton = loading.skeleton(loading.load_config(located.folder))
    for file, _ in files:
        layout.fit(file, skeleton, device="meta")
        check_base(file, located.folder)
    tuning = layout.fit(combined, skeleton, device="cpu")
    tuning.about["base"] = fingerprint(located.folder)
    write_whole(out, lambda aside: layout.write(aside, skeleton, tuning, opened_as(located)))
    ranks = sorted({combined.tensors[f"{path}.A"].shape[0] for path in combined.facts["scales"]})
    print(
        f"{out}: {' + '.join(f'{weight:g} {file.folder}' for file, weight in files)} ({how}) as a LoRA of rank "
        f"{'-'.join(map(str, ranks[:1] + ranks[1:][-1:]))} in {len(combined.facts['scales'])} layers"
    )
    apart = compose.deviation(combined, files)
    if how == "linear":
        print(f"the factors were averaged: the update differs from the weighted sum by {apart:.0%}; --how concat is exact", file=sys.stderr)
    for file, _ in files:
        if (file.about.get("pissa") or {}).get("quantised"):
            print(f"{file.folder} was trained over NF4 of a residual; it takes part as the LoRA that it is served as", file=sys.stderr)
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
