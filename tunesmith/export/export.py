"""One export from beginning to end: what is asked is checked, the model's own answers are heard, the folder is filled, and the program
that will serve it is asked the same.

The order is the point: the answers are there before anything is written, so that no mistake of a writer is in what it is judged by.
"""

import dataclasses
import gc
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.errors import ProofFailed, UserError
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.export.targets import TARGETS
from tunesmith.export.truth import truth_of

FACTS = "export.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
Fill = Callable[[Path, Callable[[Path], Any]], None]  # (target, fill): makes a whole folder of what `fill` writes, or none


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what the proof says; None where it was left out."""

    folder: Path
    facts: dict[str, Any]
    proof: Proof | None


def check(target: str, sources: Sequence[Source], options: Options) -> None:
    """Raises UserError with every reason why this cannot be, before any weight is read."""
    module = TARGETS[target]
    problems = []
    if options.quantize is not None and options.quantize not in module.QUANTIZE:
        takes = f"it takes {', '.join(module.QUANTIZE)}" if module.QUANTIZE else "leave it out"
        problems.append(f"--quantize {options.quantize}: not a way of --to {target}; {takes}")
    if options.adapter_only and target != "gguf":
        problems.append(f"--adapter-only is for --to gguf; --to {target} takes none")
    if options.vllm_python is not None and target != "vllm":
        problems.append(f"--vllm-python is for the proof of --to vllm; --to {target} does not use it")
    if options.keep_base and not module.SEVERAL:
        problems.append(f"--keep-base puts base and adapters side by side, which --to {target} does not")
    if len(sources) > 1 and not module.SEVERAL:
        several = ", ".join(name for name, each in TARGETS.items() if each.SEVERAL)
        problems.append(f"--to {target} takes one DIR; several of one base go together with --to {several}")
    if len({source.base.resolve() for source in sources}) > 1:
        problems += ["only adapters of one base go together:", *[f"  {source.given}: {source.base_name}" for source in sources]]
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"two DIRs are called {twice[0]}, and would answer to one name; rename one of the folders")
    if module.SEVERAL and (odd := [name for name in names if not NAME.fullmatch(name)]):
        problems.append(f"{odd[0]!r} becomes a name in commands: letters, digits, dots, dashes and underscores alone; rename the folder")
    if problems:
        raise UserError(*problems)
    module.check(sources, options)


def export(
    target: str, sources: Sequence[Source], out: Path, options: Options, *, verify: bool, fill: Fill, tell: Tell, fitted: Any = None
) -> Exported:
    """Write the folder `out` by way of `fill`, and prove it. `check` was asked before. What the proof says stands in export.json.

    `fitted` is what is to be said there of LoRAs that were fitted to what was asked for.

    Raises UserError for what cannot be written or not be opened here, ProofFailed where the proof fails; the folder stands then.
    """
    module = TARGETS[target]
    if verify:
        module.can_prove(options)  # a large model is not written first, and a run not ended, to learn that
    merged = module.merges(sources, options)
    truths: list[Truth] = []
    for source in sources if verify else []:
        truths.append(truth_of(source, merged, tell))
        gc.collect()
    facts: dict[str, Any] = {"target": target, "tunesmith": __version__, "sources": [_about(source) for source in sources]}
    facts |= {"options": {key: value for key, value in dataclasses.asdict(options).items() if value}} | (
        {"fitted": fitted} if fitted else {}
    )

    def write(folder: Path) -> None:
        facts["written"] = module.write(sources, folder, options, tell)
        apart = {source.name: truth.from_trained for source, truth in zip(sources, truths, strict=False) if truth.from_trained}
        facts["from_trained"] = apart
        facts["proof"] = "it did not end" if verify else "left out: --no-verify"
        _write(folder / FACTS, facts)

    fill(out, write)
    if not verify:
        return Exported(out, facts, None)
    return Exported(out, facts, prove(target, sources, truths, out, options, facts, tell))


def prove(
    target: str, sources: Sequence[Source], truths: Sequence[Truth], out: Path, options: Options, facts: dict[str, Any], tell: Tell
) -> Proof:
    """Ask the program that will serve the folder. Raises ProofFailed with every failure; export.json says what was found either way."""
    try:
        proof: Proof = TARGETS[target].prove(sources, truths, out, options, tell)
    except UserError as error:
        facts["proof"] = "it could not be made: " + "; ".join(error.problems)
        _write(out / FACTS, facts)
        raise
    facts["proof"] = dataclasses.asdict(proof)
    _write(out / FACTS, facts)
    if proof.failures:
        raise ProofFailed(
            f"{out}: {proof.opened_by} opened it, and it is not the model that was trained; do not serve it",
            *[f"  {failure}" for failure in proof.failures],
            "  the folder stands for a look; if the same happens in a new folder, the fault is ours: report it with export.json",
        )
    return proof


def _about(source: Source) -> dict[str, Any]:
    return {
        "name": source.name,
        "base": source.base_name,
        "adapter": None if source.adapter is None else source.tuning.layout,
        "trained_over": "nf4" if source.quantized else "the base's own weights",
    }


def _write(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
