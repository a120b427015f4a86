"""A merged folder is opened and compared with the adapter; what came of it, as merge.json and in sentences."""

import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunesmith.export.bases import KINDS, Trial, better
from tunesmith.export.live import Apart
from tunesmith.export.merge import Folding, Merged
from tunesmith.models import load as loading

_SHARE = 0.1  # of the whole difference, from which on what rounding alone costs is said


def prove(found: Trial, folder: Path, written: Merged) -> "Report":
    """Load what was written, and compare it with the live adapter. No other model may be in memory."""
    model = loading.load(folder, dtype=found.dtype, device=found.device, own_head=found.live.head is None).model
    logits = found.live.ask(model)
    del model
    gc.collect()
    apart = found.live.apart(logits)
    # over the original weights what was not rounded is known: base and adapter side by side
    split = found.kind == "original" and found.beside is not None
    rounding = found.live.between(found.beside_logits, logits) if split else apart
    return Report(found, written, apart, rounding, rounded_to(found.foldings[found.kind]))


def rounded_to(change: Folding) -> str:
    """The name of the number format below fp32 in which changed matrices stand, "" where they are fp32."""
    names = {"BF16": "bfloat16", "F16": "float16"}
    for key in change.found:
        with safe_open(change.files[key], framework="pt") as content:
            if (kind := content.get_slice(key).get_dtype()) in names:
                return names[kind]
    return ""


@dataclass(frozen=True)
class Report:
    """What a merge made, and how far that is from the live adapter."""

    trial: Trial
    written: Merged
    apart: Apart
    rounding: Apart  # what the file's number format alone costs
    file: str  # that format, where it is below fp32

    def facts(self) -> dict[str, Any]:
        """merge.json"""
        found = self.trial
        facts: dict[str, Any] = {
            "changed_tensors": self.written.changed,
            "tensors": self.written.tensors,
            "base_weights": found.kind,
            "trained_over": found.trained_over,
            "difference_from_adapter": dataclasses.asdict(self.apart.prompts),
        }
        if self.apart.rows is not None:
            facts["difference_on_rows"] = dataclasses.asdict(self.apart.rows)
        if self.file:
            facts["rounding"] = {"to": self.file} | self.rounding.facts()
        if found.apart:
            facts["bases"] = {kind: found.apart[kind].facts() for kind in KINDS}
        if found.beside is not None:
            facts["difference_of_served_lora"] = dataclasses.asdict(found.beside.prompts)
        return facts

    def sentences(self, out: Path) -> list[str]:
        """For people: the result first."""
        said = [f"{out}: {self.written.changed} of {self.written.tensors} tensors changed; against the adapter {_far(self.apart)}"]
        return said + ([_both(self.trial)] if self.trial.apart else []) + ([_rounding(self)] if _rounding(self) else [])


def _far(apart: Apart) -> str:
    on = [(f"on {apart.prompts.positions} positions", apart.prompts)]
    on += [] if apart.rows is None else [(f"on {apart.rows.positions} positions of the run's own rows", apart.rows)]
    return "; ".join(
        f"{where}: KL {far.mean_kl:.2e} nats, largest logit difference {far.largest_logit_difference:.2e}, "
        f"top-1 agreement {far.top1_agreement:.1%}"
        for where, far in on
    )


def _both(found: Trial) -> str:
    assert found.beside is not None
    far = {kind: found.apart[kind].decides for kind in KINDS}
    nearer, other = better(found.apart), next(kind for kind in KINDS if kind != better(found.apart))
    why = {
        "dequantised": "the adapter was trained over NF4's rounding of the base and makes up for it",
        "original": "here NF4's rounding moved the answers more than the adapter made up for",
    }[nearer]
    chosen = "so it is what was written" if found.kind == nearer else f"but --base {found.kind} was asked for"
    beside = found.beside.decides
    figures = {kind: f"KL {far[kind].mean_kl:.2e} (top-1 {far[kind].top1_agreement:.1%})" for kind in KINDS}
    return (
        f"trained over NF4, so two bases can take it: {nearer} weights {figures[nearer]}, {other} weights {figures[other]}; "
        f"the {nearer} ones are nearer, {why}, {chosen}. "
        f"Served as a LoRA over the original ones: KL {beside.mean_kl:.2e} nats, top-1 agreement {beside.top1_agreement:.1%}"
    )


def _rounding(report: Report) -> str:
    alone, whole = report.rounding.decides.mean_kl, report.apart.decides.mean_kl
    if not report.file or not alone > _SHARE * whole:
        return ""
    share = "all" if alone >= whole else f"{alone / whole:.0%}"
    return f"rounding to the file's {report.file} alone costs KL {alone:.2e} nats, {share} of that"
