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
from tunesmith.export.target import Source
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
# While distilling, by whether a CPU computes it: tokens of a row, and of a step. 200 steps are minutes on either.
ROW_TOKENS, STEP_TOKENS = {True: 1024, False: 8192}, {True: 512, False: 4096}

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
    """What a LoRA should be like: `rank` and `energy` as `fit_lora` has them, the rest for distillation."""

    source: str
    rank: int | None
    energy: float
    data: str | None
    steps: int
    seed: int
    tell: Tell


@dataclass(frozen=True, slots=True)
class Made:
    """The LoRA's modules, and what is known of them before they are asked anything; the fields are those of `Fit`."""

    adapter: dict[str, nn.Module]
    how: str
    rank: int
    layers: dict[str, float]
    energy: float | None
    lost: dict[str, float]
    distilled: distil.Distilled | None = None


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
    request = Request(source, rank, energy, data, steps, seed, tell)
    tuned = open_tuned(source, model=model, refuse=partial(_refuse, source))
    tell("asking what is fitted to")
    live, base, name = listen(tuned), _base_of(tuned), _method(tuned)
    made = _learned(tuned, request) if unmergeable(tuned.tuning) else _taken_apart(tuned, base, request)
    student = _tuning(made.adapter, tuned.head)
    dtype, device = tuned.base.dtype, tuned.model.device
    del tuned
    gc.collect()
    tell("asking the LoRA")
    apart, without = _asked_over(base.folder, dtype, device, live, student)
    fit = Fit(out, source, name, made.how, made.rank, made.layers, made.energy, made.lost, apart, without, made.distilled)
    student.about = {"base": fingerprint(base.folder), "fitted": fit.facts()}
    layout.write(out, loading.skeleton(loading.load_config(base.folder)), student, opened_as(base))
    return fit


def _taken_apart(tuned: Tuned, base: Located, request: Request) -> Made:
    """The leading part of what changed of each matrix. Nothing stands in the model afterwards."""
    request.tell("taking apart what changed")
    bare = loading.skeleton(loading.load_config(base.folder))
    changes, lost = (of_adapter if tuned.has_adapter else of_model)(tuned, base.folder, bare, request.rank or MOST, request.seed)
    slots.lift(tuned.model, tuned.tuning.adapter)
    if not changes:
        raise UserError(f"{request.source}: no matrix that a LoRA stands beside was changed, so there is nothing to fit", *_named(lost))
    rank = request.rank or nearest.least_rank(changes, request.energy)
    adapter: dict[str, nn.Module] = {change.path: nearest.lora(change, rank) for change in changes}
    layers = {change.path: change.lost(rank) for change in changes}
    return Made(adapter, "singular values", rank, layers, nearest.kept(changes, rank), lost)


def _learned(tuned: Tuned, request: Request) -> Made:
    """A LoRA that has learned to answer as the adapter, on the base as that was trained over. Nothing stands in the model afterwards."""
    request.tell("reading what it is distilled on")
    documents, model, folder = _documents(tuned, request.data), tuned.model, tuned.base.folder
    slots.lift(model, tuned.tuning.adapter)
    settings = LoRA(rank=request.rank or DISTILLED_RANK)
    student = method.build(model, settings, quantized=tuned.base.quantized, device=model.device)
    method.begin(student, Start(model, tuned.tokenizer, request.seed, lambda path: matrix(folder, path, model)), settings)
    on_cpu, width = model.device.type == "cpu", int(getattr(model.config.get_text_config(), "hidden_size", UNKNOWN_WIDTH))
    done = distil.distil(
        tuned.base,
        tuned.tuning,
        student,
        documents,
        rate=rate_at(METHODS["lora"].LEARNING_RATES, width),
        steps=request.steps,
        tokens_per_step=STEP_TOKENS[on_cpu],
        row_tokens=ROW_TOKENS[on_cpu],
        seed=request.seed,
        tell=request.tell,
    )
    return Made(student.adapter, "distillation", settings.rank, {}, None, {}, done)


def to_be(source: Source, rank: int | None) -> Source:
    """What `fit_lora` will make of a source, by its shapes: enough for a target's `check`. Raises UserError where nothing can be fitted."""
    _refuse(source.given, source.tuning)
    base = source.base
    if source.adapter is None and source.run is not None:
        base = locate(config.load(source.run / "run.yaml").run.model.source).folder
    skeleton = loading.skeleton(loading.load_config(base))
    most = max((min(place.in_features, place.out_features) for place in slots.linears(skeleton)), default=0)
    if rank is not None and rank > most:  # its zeros would fill the memory
        raise UserError(f"--as lora:{rank}: no layer of this model has more than {most} directions; ask for a smaller rank")
    tuning = method.build(skeleton, LoRA(rank=rank or DISTILLED_RANK), quantized=False, device="meta")
    tuning.head = source.tuning.head
    return dataclasses.replace(source, base=base, adapter=source.adapter or Path(source.given), quantized=False, tuning=tuning)


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
