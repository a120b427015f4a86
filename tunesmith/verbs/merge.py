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
    parser.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="exit 3 where the merged model is further than this from the adapter (KL divergence, nats)",
    )
    parser.add_argument("--model", metavar="M", help="the base of an adapter folder that does not name it")


def run(arguments: argparse.Namespace) -> int:
    return merge_run(Path(arguments.run), Path(arguments.out), arguments.max_kl, arguments.model)


def merge_run(source: Path, out: Path, max_kl: float | None, model: str | None = None) -> int:
    """Merge, load the result, compare logits on sample prompts, print and store the difference. Raises UserError, ProofFailed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder")
    from tunesmith.export.difference import compare, logits_of, prompts
    from tunesmith.generate import serving
    from tunesmith.models import load as loading
    from tunesmith.train.folder import write_json
    from tunesmith.tuned import open_tuned

    tuned = open_tuned(str(source), model=model)
    if not tuned.has_adapter:
        whole = f"; its whole model is in {source}/model" if tuned.run else ""
        raise UserError(f"{source} holds no adapter: there is nothing to merge{whole}")
    asked = prompts(tuned.tokenizer, tuned.renderer)
    with serving(tuned.model):
        live = logits_of(tuned.model, asked)
    written = _fold(tuned, out)
    quantized, dtype, device = tuned.base.quantized, tuned.base.dtype, tuned.model.device
    del tuned  # two models at once might not fit

    merged = loading.load(out, dtype=dtype, device=device)
    difference = compare(live, logits_of(merged.model, asked))
    facts = {
        "changed_tensors": written.changed,
        "tensors": written.tensors,
        "base_weights": "original",
        "trained_over": "nf4" if quantized else str(dtype).removeprefix("torch."),
        "difference_from_adapter": dataclasses.asdict(difference),
    }
    for folder in [out] + ([source] if (source / "run.yaml").is_file() else []):
        write_json(folder / "merge.json", facts)
    print(
        f"{out}: {written.changed} of {written.tensors} tensors changed; against the adapter on {difference.positions} positions: "
        f"KL {difference.mean_kl:.2e} nats, largest logit difference {difference.largest_logit_difference:.2e}, "
        f"top-1 agreement {difference.top1_agreement:.1%}"
    )
    if quantized:
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

    folder, modules, prefix = tuned.located.folder, tuned.tuning.adapter, tuned.model.base_model_prefix
    bare = loading.skeleton(loading.load_config(folder))  # over NF4 the model's own Conv1D layers have been exchanged
    transposed = {path: isinstance(bare.get_submodule(path), Conv1D) for path in modules}
    written: list[Any] = []
    write_whole(out, lambda aside: written.append(fold(folder, aside, modules, transposed.__getitem__, prefix)))
    return written[0]
