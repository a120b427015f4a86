"""A LoRA fitted to what is none, for servers that take nothing else, with the error it comes with.

    changes of matrices (DoRA, PiSSA, full and freeze tuning, a LoRA of a larger rank)
        the leading part of each layer's change, by singular values (`nearest.py`): at a rank that is asked for, or the least that
        holds a share of what changed. Norms, biases, embeddings, heads and extra tokens that were trained are no change that a LoRA
        can hold: they are named with their size
    no change of any matrix (prompt, P-tuning, prefix, bottleneck adapters)
        a LoRA that learns to answer alike on the run's own rows (`distil.py`)

The LoRA stands over the base's original weights, as servers load them. At the end base and LoRA are asked what the live adapter was
asked before; two models never stand in memory at once.
"""

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import config
from tunesmith.data.corpus.blocks import open_sources
from tunesmith.data.corpus.documents import Documents, prepare
from tunesmith.data.corpus.samples import samples_of
from tunesmith.data.sources import pick, understand
from tunesmith.errors import UserError
from tunesmith.export import distil, nearest
from tunesmith.export.changes import of_adapter, of_model
from tunesmith.export.live import Apart, Live, listen
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.method import METHODS, unmergeable
from tunesmith.methods.rates import rate_at
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.fingerprint import difference, fingerprint
from tunesmith.models.matrix import matrix
from tunesmith.models.score import Score
from tunesmith.models.source import Located, locate, opened_as
from tunesmith.tuned import Tuned, open_tuned

ENERGY, MOST = 0.95, 128  # of the change that is held where no rank is asked for, and the largest rank that is taken for it
DISTILLED_RANK = 16  # what servers take by default
ROWS = 4096  # of the run's data that a LoRA is distilled on
NAMED = 12  # tensors that a LoRA cannot hold, named in a sentence
UNKNOWN_WIDTH = 2048  # channels of a model whose config does not say how wide it is
ROW_TOKENS = {True: 1024, False: 8192}  # of a row while distilling, by whether a CPU computes it

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """A LoRA in an adapter folder, and how near it is."""

    folder: Path
    source: str
    method: str  # of what it was fitted to
    how: str  # "singular values" or "distillation"
    rank: int
    layers: dict[str, float]  # path -> ‖ΔW − B·A‖ / ‖ΔW‖; empty after distillation
    energy: float | None  # the share of all changes that the LoRA holds
    lost: dict[str, float]  # name of a trained tensor that no LoRA can hold -> ‖change‖ / ‖tensor‖
    apart: Apart  # base and LoRA against the live adapter
    without: Apart  # the base alone against it: what there was to be fitted
    distilled: distil.Distilled | None = None

    def facts(self) -> dict[str, Any]:
        """What `tunesmith.json` beside the LoRA says of it."""
        by_layer = {} if not self.layers else {"energy_kept": self.energy, "relative_error": self.layers}
        steps = {} if self.distilled is None else {"distilled": dataclasses.asdict(self.distilled)}
        return {
            "to": Path(self.source).resolve().name if Path(self.source).exists() else self.source,
            "method": self.method,
            "how": self.how,
            "rank": self.rank,
            **by_layer,
            **steps,
            "not_held": self.lost,
            "difference": self.apart.facts(),
            "difference_of_the_base": self.without.facts(),
        }

    def sentences(self) -> list[str]:
        """For people: the result first."""
        far, alone = self.apart.decides, self.without.decides
        what = f"{self.folder}: a LoRA of rank {self.rank} fitted to {self.source} ({self.method}) by {self.how}"
        if self.layers:
            worst = max(self.layers, key=lambda path: self.layers[path])
            least = f"least at {worst} (error {self.layers[worst]:.1%})"
            what += f" in {len(self.layers)} layers; it holds {self.energy:.1%} of what changed, {least}"
        if (done := self.distilled) is not None:
            what += (
                f", {done.steps} steps on {done.documents:,} documents; KL on {done.held_out_documents} held out: "
                f"{done.before:.3g} before, {done.after:.3g} after"
            )
        said = [
            f"{what}; against the live one on {far.positions} positions: KL {far.mean_kl:.2e} nats (the base alone {alone.mean_kl:.2e}), "
            f"top-1 agreement {far.top1_agreement:.1%} ({alone.top1_agreement:.1%})"
        ]
        return said + _named(self.lost)


def _named(lost: Mapping[str, float]) -> list[str]:
    """A sentence on what is left out, or none."""
    if not lost:
        return []
    named = ", ".join(f"{name} ({size:.1%})" for name, size in sorted(lost.items(), key=lambda item: -item[1])[:NAMED])
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return [f"no LoRA can hold what was trained at {named}{more}; it is left out"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is fitted to, and how a LoRA is distilled where that is the way."""

    source: str
    data: str | None
    steps: int
    seed: int


def fit_lora(
    source: str,
    rank: int | None,
    out: Path,
    *,
    energy: float = ENERGY,
    model: str | None = None,
    data: str | None = None,
    steps: int = distil.STEPS,
    seed: int = 0,
    tell: Tell = lambda sentence: None,
) -> Fit:
    """Fill folder `out` with a LoRA in peft's layout, fitted to a run, an adapter folder, or (full, freeze) a run's whole model.

    Without a `rank` it is the least that holds `energy` of what changed (`MOST` at most), or `DISTILLED_RANK`. `data`, `steps` and
    `seed` are for distillation; without `data` the run's own rows are taken. Raises UserError where there is nothing to fit to, and
    for data that cannot be used.
    """
    tuned = open_tuned(source, model=model, refuse=partial(_refuse, source))
    tell("asking what is fitted to")
    live = listen(tuned)
    if unmergeable(tuned.tuning):
        return _distilled(tuned, live, rank or DISTILLED_RANK, Request(source, data, steps, seed), out, tell)
    base, name, head = _base_of(tuned), _method(tuned), tuned.head
    bare = loading.skeleton(loading.load_config(base.folder))
    tell("taking apart what changed")
    changes, lost = (of_adapter if tuned.has_adapter else of_model)(tuned, base.folder, bare, rank or MOST, seed)
    if not changes:
        raise UserError(f"{source}: no matrix that a LoRA stands beside was changed, so there is nothing to fit", *_named(lost))
    chosen = rank or nearest.least_rank(changes, energy)
    student = _tuning({change.path: nearest.lora(change, chosen) for change in changes}, head)
    dtype, device = tuned.base.dtype, tuned.model.device
    slots.lift(tuned.model, tuned.tuning.adapter)
    del tuned
    gc.collect()
    apart, without = _asked_over(base.folder, dtype, device, live, student)
    layers = {change.path: change.lost(chosen) for change in changes}
    fit = Fit(out, source, name, "singular values", chosen, layers, nearest.kept(changes, chosen), lost, apart, without)
    _write(out, bare, student, base, fit)
    return fit


def _refuse(source: str, tuning: Tuning) -> None:
    if not tuning.adapter and not (Path(source).expanduser() / "run.yaml").is_file():
        raise UserError(f"{source} is a model by itself: a LoRA is fitted to an adapter, or to what a run made of its base; name that run")


def _method(tuned: Tuned) -> str:
    return tuned.run.method.name if tuned.run is not None else str(tuned.tuning.about.get("method") or tuned.tuning.layout)


def _base_of(tuned: Tuned) -> Located:
    """The base over which the LoRA will stand. Raises UserError where a run's base is no longer the one that was trained."""
    if tuned.has_adapter or tuned.run is None:
        return tuned.located
    base = locate(tuned.run.model.source)
    plan = tuned.located.folder.parent / "plan.json"
    kept = json.loads(plan.read_text(encoding="utf-8")).get("base") if plan.is_file() else None
    if kept and (why := difference(kept, fingerprint(base.folder))):
        raise UserError(f"{tuned.run.model.source} is no longer the model that the run began with: {why}; put the old one back")
    return base


def _tuning(adapter: Mapping[str, nn.Module], head: Score | None) -> Tuning:
    """The LoRA, with a task's head where that was trained beside what is fitted to."""
    tuning = Tuning(dict(adapter), dict(slots.indexed(adapter)), head=head)
    if head is not None:
        tuning.parameters |= head.tensors
    return tuning


def _asked_over(folder: Path, dtype: torch.dtype, device: torch.device, live: Live, student: Tuning) -> tuple[Apart, Apart]:
    """(base and LoRA, the base alone) against the live adapter, over the base's original weights."""
    model: Any = loading.load(folder, dtype=dtype, device=device, own_head=live.head is None).model
    without = live.apart(live.ask(model))
    for module in student.adapter.values():
        module.to(device)
    slots.place(model, student.adapter)
    return live.apart(live.ask(model)), without


def _write(folder: Path, bare: Any, student: Tuning, base: Located, fit: Fit) -> None:
    student.about = {"base": fingerprint(base.folder), "fitted": fit.facts()}
    layout.write(folder, bare, student, opened_as(base))


def _distilled(tuned: Tuned, live: Live, rank: int, request: Request, out: Path, tell: Tell) -> Fit:
    """Teacher and student take turns on the base as it was trained over; the LoRA is measured over the original weights."""
    student, done = _learned(tuned, rank, request, tell)
    located, name, dtype, device, head = tuned.located, _method(tuned), tuned.base.dtype, tuned.model.device, tuned.head
    del tuned
    gc.collect()
    learned = _tuning(student.adapter, head)
    apart, without = _asked_over(located.folder, dtype, device, live, learned)
    fit = Fit(out, request.source, name, "distillation", rank, {}, None, {}, apart, without, done)
    _write(out, loading.skeleton(loading.load_config(located.folder)), learned, located, fit)
    return fit


def _learned(tuned: Tuned, rank: int, request: Request, tell: Tell) -> tuple[Tuning, distil.Distilled]:
    """The LoRA that has learned to answer as the adapter, and what came of it. Nothing stands in the model afterwards."""
    tell("reading what it is distilled on")
    documents, model, folder = _documents(tuned, request.data), tuned.model, tuned.base.folder
    slots.lift(model, tuned.tuning.adapter)
    settings = LoRA(rank=rank)
    student = method.build(model, settings, quantized=tuned.base.quantized, device=model.device)
    method.begin(student, Start(model, tuned.tokenizer, request.seed, lambda path: matrix(folder, path, model)), settings)
    width = int(getattr(model.config.get_text_config(), "hidden_size", UNKNOWN_WIDTH))
    done = distil.distil(
        tuned.base,
        tuned.tuning,
        student,
        documents,
        rate=rate_at(METHODS["lora"].LEARNING_RATES, width),
        steps=request.steps,
        row_tokens=ROW_TOKENS[model.device.type == "cpu"],
        seed=request.seed,
        tell=tell,
    )
    return student, done


def _documents(tuned: Tuned, data: str | None) -> Documents:
    """Rows of `data`, or of what the run learned from, as they were rendered for it. Raises UserError where there are none."""
    run = tuned.run.data if tuned.run is not None else config.Data()
    named: list[str] = [data] if data else [run.train] if isinstance(run.train, str) else [each.source for each in run.train]
    if not all(named):
        raise UserError(
            f"{tuned.name} changes no matrix, so a LoRA learns to answer alike, from rows; name the run's folder, which knows its data"
        )
    sources = open_sources(named, understand(**({} if data else run.reading)), run.info)
    lost: list[str] = []
    samples = pick(samples_of(sources, lost), ROWS, "fit")
    if not samples:
        raise UserError(f"{', '.join(named)}: no usable rows to fit a LoRA on", *lost[:1])
    prepared = prepare(samples, tuned.renderer, max_length=run.max_length, on_overlength=run.on_overlength)
    prepared.refuse("skip", run.max_length)
    return prepared.documents
