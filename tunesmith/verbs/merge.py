"""`tunesmith merge DIR OUT`: an adapter folded into its base model, measured against the adapter itself."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tunesmith.errors import ProofFailed, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="DIR", help="run folder or adapter folder")
    parser.add_argument("out", metavar="OUT", help="new folder for the merged model")
    parser.add_argument("--max-kl", type=float, metavar="X", help="refuse (exit 3) where the merged model is further than this from the adapter, in nats")
    parser.add_argument("--model", metavar="M", help="the base of an adapter folder that does not name it")


def run(arguments: argparse.Namespace) -> int:
    return merge_run(Path(arguments.run), Path(arguments.out), arguments.max_kl, arguments.model)


def merge_run(source: Path, out: Path, max_kl: float | None, model: str | None = None) -> int:
    """Merge, load the result, compare logits on sample prompts, print and store the difference. Raises UserError, ProofFailed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder")
    from transformers.pytorch_utils import Conv1D

    from tunesmith.export.difference import compare, logits_of, prompts
    from tunesmith.export.merge import fold
    from tunesmith.models import load as loading
    from tunesmith.train.checkpoint import write_whole
    from tunesmith.train.folder import write_json
    from tunesmith.tuned import open_tuned

    tuned = open_tuned(str(source), model=model)
    if not tuned.has_adapter:
        raise UserError(f"{source} holds no adapter: there is nothing to merge" + (f"; its whole model is in {source}/model" if tuned.run else ""))
    from tunesmith.generate import serving

    asked = prompts(tuned.tokenizer, tuned.renderer)
    with serving(tuned.model):
        live = logits_of(tuned.model, asked)
    modules: dict[str, Any] = dict(tuned.tuning.adapter)
    layers = {path: isinstance(tuned.model.get_submodule(path), Conv1D) for path in modules}
    quantized, dtype, folder, prefix = tuned.base.quantized, tuned.base.dtype, tuned.located.folder, tuned.model.base_model_prefix
    written: list[Any] = []
    del tuned  # two models at once might not fit
    write_whole(out, lambda aside: written.append(fold(folder, aside, modules, layers.__getitem__, prefix)))

    merged = loading.load(out, dtype=dtype)
    difference = compare(live, logits_of(merged.model, asked))
    facts = {
        "changed_tensors": written[0].changed,
        "tensors": written[0].tensors,
        "base_weights": "original",
        "trained_over": "nf4" if quantized else str(dtype).removeprefix("torch."),
        "difference_from_adapter": dataclasses.asdict(difference),
    }
    write_json(out / "merge.json", facts)
    if (source / "run.yaml").is_file():
        write_json(source / "merge.json", facts)
    print(
        f"{out}: {written[0].changed} of {written[0].tensors} tensors changed; against the adapter on {difference.positions} positions: "
        f"KL {difference.mean_kl:.2e} nats, largest logit difference {difference.largest_logit_difference:.2e}, top-1 agreement {difference.top1_agreement:.1%}"
    )
    if quantized:
        print("the adapter was trained over NF4 weights and is merged into the original ones: the difference above is that of the quantisation", file=sys.stderr)
    if max_kl is not None and not difference.mean_kl <= max_kl:
        raise ProofFailed(f"{out}: KL {difference.mean_kl:.2e} is above --max-kl {max_kl:g}; the folder was written, do not serve it unseen")
    return 0
