"""Everything before the weights are read: the model is found, the data is read, rendered and proved, and what was `auto` is
decided, once, with its reason. Dry runs end here; the loop begins here."""

import datetime
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.config import Run, parse
from tunesmith.data.corpus.batches import Plan
from tunesmith.data.corpus.documents import Documents
from tunesmith.data.corpus.stream import Stream
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import UserError
from tunesmith.export import served
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import check_base
from tunesmith.methods.method import METHODS, build, learning_rates
from tunesmith.methods.parts.extras import token_ids
from tunesmith.methods.rates import beyond, rate_at
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import score
from tunesmith.models.source import Located, locate
from tunesmith.run_yaml import flow
from tunesmith.step.memory import Question
from tunesmith.train import corpora, engine, memory, optimizers, prefixes, tensorboard
from tunesmith.train import task as tasks
from tunesmith.train.adapter import adapter_folder, adapter_to_go_on_from, refuse_idle
from tunesmith.train.corpora import Corpus, Tell
from tunesmith.train.memory import Choice
from tunesmith.train.task import Asked

NF4_BYTES = 0.7  # bytes a parameter while loading, with embeddings that stay as they are
REASONS = 3  # kinds of reasons shown for rows that are not learned from
REFERENCE_WIDTH = 2048  # of a model whose config does not say how wide it is


@dataclass
class Setting:
    """A run that is decided but not begun. `run` holds no `auto` that matters any more."""

    run: Run
    origins: dict[str, str]
    located: Located
    config: Any
    tokenizer: Any
    asked: Asked
    documents: Documents
    evaluation: Documents | None
    report: dict[str, Any]  # data.json
    plan: Plan | Stream
    steps: int
    device: torch.device
    dtype: torch.dtype
    tuning: Tuning  # on the meta device: shapes and names
    total_parameters: int
    notes: list[str]
    memory: Choice


def decide(run: Run, origins: dict[str, str], tell: Tell = lambda sentence: None) -> Setting:
    """Raises UserError with what the user must change, before anything large is read."""
    auto = _Auto(run, dict(origins))
    if run.model.adapter is not None and not run.model.source:
        auto.set("model.source", "", layout.base_of(adapter_folder(run.model.adapter)), f"of the adapter {run.model.adapter}")
    _required(auto.run)
    if run.train.tensorboard:
        tensorboard.require()
    located = locate(auto.run.model.source, progress=tell)
    config = loading.load_config(located.folder)
    tokenizer = loading.load_tokenizer(located.folder)
    device = hardware.device(run.model.device)
    auto.set("model.device", "auto", str(device), "this machine")
    dtype, why = hardware.default_dtype(device)
    auto.set("model.dtype", "auto", str(dtype).removeprefix("torch."), why)
    dtype = loading.DTYPES[auto.run.model.dtype]
    engine.refuse(auto.run, device)
    auto.set("data.date", "today", datetime.date.today().isoformat(), "today")
    auto.set("train.threads", "auto", *threads())

    skeleton = loading.skeleton(config)
    if asked := getattr(run.method, "trainable_tokens", []):
        auto.set("method.trainable_tokens", asked, token_ids(asked, tokenizer), f"ids of {' '.join(map(str, asked))}")
    tuning = _tuning(auto, skeleton, located.folder)
    if problems := optimizers.hindrances(auto.run, tuning):
        raise UserError(*problems)
    size = _fits(located, skeleton, auto.run, device)

    renderer = Renderer(tokenizer, thinking=run.data.thinking, date=auto.run.data.date, stop_ids=loading.stop_ids(located.folder, config))
    tell("reading and tokenising the data")
    named = corpora.training(auto.run)
    asked = tasks.ask(auto.run, named[0], renderer, tuning, tell)
    auto.set("data.stream", "auto", *corpora.stream(auto.run, named, labelled=bool(asked.task)))
    corpus = (corpora.open_stream if auto.run.data.stream else corpora.read)(auto.run, named, asked.renderer, tell)
    kind = "text" if corpus.is_text else "generate"
    auto.set("task.name", "auto", kind, "the data")
    if auto.run.task.name in ("generate", "text") and auto.run.task.name != kind:
        raise UserError(f"task.name is {auto.run.task.name}, but the data is made of {'raw text' if kind == 'text' else 'conversations'}")
    if asked.labels:
        auto.set("task.labels", "auto", asked.labels, "those of the training data")
    if asked.task:
        auto.set("task.input", "auto", asked.input, "of the adapter's head" if tuning.head is not None else "the bare text costs least")
    asked.give_head(skeleton, tuning, corpus.documents, auto.run, device="meta")
    if kind == "text":  # a file is a document: cutting it would throw most of it away
        auto.set("data.on_overlength", "truncate", "split", "raw text is split, nothing is thrown away")
    documents, evaluation, report = corpus.documents, corpus.evaluation, corpus.report
    _room(config, tuning, corpus, run.data.max_length)

    def ask(run: Run, longest: int) -> Question:
        return memory.question(run, skeleton, tuning, size.weight_bytes, dtype, device, documents, longest)

    steps, plan, choice = _plan(auto, corpus, ask, device)
    report["shared_prefixes"] = _shared_prefixes(auto.run, documents, plan, tuning, tokenizer)
    rates, width = learning_rates(auto.run.method), int(getattr(config.get_text_config(), "hidden_size", REFERENCE_WIDTH))
    unknown = beyond(rates, width) if auto.run.train.learning_rate == "auto" else ""
    auto.set("train.learning_rate", "auto", rate_at(rates, width), f"the default of {auto.run.method.name} at {width} channels")
    auto.set("train.checkpoint_every", "auto", max(1, math.ceil(steps / 10)), "a tenth of the run")
    auto.set("evaluate.every", "auto", max(1, math.ceil(steps / 10)), "a tenth of the run")
    flops = 4.0 * size.total_parameters * plan.tokens_in(steps)
    auto.set("train.compile", "auto", *engine.compiles(auto.run, device, dtype, steps, flops))
    auto.set("train.cuda_graphs", "auto", *engine.recorded(auto.run, device, size.total_parameters))
    auto.set("out", "", _out(auto.run, located), "model, method and data")
    served_notes = served.warnings(served.traits_of(tuning), auto.run.serve_with)
    notes = [
        *tuning.notes,
        *served_notes,
        *optimizers.notes(auto.run, dtype),
        *choice.notes,
        *_losses(report),
        *([unknown] if unknown else []),
    ]
    if run.evaluate.forgetting:
        notes.append(
            "evaluate.forgetting: this version does not measure yet what the model forgot; compare with `tunesmith evaluate --against`"
        )
    return Setting(
        auto.run, auto.origins, located, config, tokenizer, asked, documents, evaluation, report, plan, steps, device, dtype,
        tuning, _total(size.total_parameters, skeleton, tuning), notes, choice,
    )  # fmt: skip


def _total(base: int, skeleton: Any, tuning: Tuning) -> int:
    """Parameters of the model as it is tuned: a task's head counts in the place of the one that it replaces."""
    if tuning.head is None:
        return base
    left_out = sum(skeleton.get_parameter(name).numel() for name in score.replaced(skeleton))
    return base - left_out + sum(parameter.numel() for parameter in tuning.head.tensors.values())


def threads() -> tuple[int, str]:
    """CPU threads, and why: the physical cores, or fewer where OMP_NUM_THREADS says so."""
    cores = hardware.physical_cores()
    wished = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if wished.isdigit() and 0 < int(wished) < cores:
        return int(wished), "OMP_NUM_THREADS"
    return cores, "physical cores"


def _tuning(auto: "_Auto", skeleton: Any, base: Path) -> Tuning:
    """What will be trained, as shapes: the method's own, or those of the adapter to go on from."""
    run = auto.run
    if run.model.adapter is None:
        return build(skeleton, run.method, quantized=run.model.quantize is not None, device="meta")
    file = layout.read(adapter_folder(run.model.adapter))
    layout.fit(file, skeleton, device="meta")  # another base model is refused before anything else about the adapter
    check_base(file, base)
    fixed = layout.settings(file, skeleton)
    auto.choose_method(fixed.pop("name"), f"of the adapter {run.model.adapter}")
    refuse_idle(auto.run.method, fixed)
    for name, value in fixed.items():
        auto.fix(f"method.{name}", value, f"of the adapter {run.model.adapter}")
    return adapter_to_go_on_from(auto.run, skeleton, "meta")


class _Auto:
    """Settings that were left to us, decided one after the other."""

    def __init__(self, run: Run, origins: dict[str, str]):
        self.run, self.origins = run, origins

    def set(self, key: str, open_value: Any, value: Any, reason: str) -> None:
        """Give `key` its value where it still holds `open_value`."""
        values = self.run.model_dump()
        section, _, name = key.rpartition(".")
        holder = values[section] if section else values
        if holder[name] == open_value:
            holder[name] = value
            self.run = parse(values)
            self.origins[key] = f"auto: {reason}"

    def choose_method(self, name: str, reason: str) -> None:
        """Take the one method that there can be. Raises UserError where the user named another."""
        asked = self.run.method.name
        if asked == name:
            return
        if asked != LoRA().name or {"method", "method.name"} & set(self.origins):
            raise UserError(f"model.adapter: the method is {name} {reason}, not {asked}; leave method.name out, or take another adapter")
        self.run = parse(self.run.model_dump() | {"method": {"name": name}})
        self.origins["method.name"] = f"auto: {reason}"

    def fix(self, key: str, value: Any, reason: str) -> None:
        """Give `key` the one value that it can have. Raises UserError where the user asked for another."""
        section, _, name = key.rpartition(".")
        values = self.run.model_dump()
        given, usual = values[section][name], type(getattr(self.run, section)).model_fields[name].default
        origin = self.origins.get(key, "auto: ")
        named = not origin.startswith("auto: ")
        if (named or given != usual) and given not in ("auto", value):  # a Run made in Python names no origins
            raise UserError(f"{origin if named else f'{key}={flow(given)}'}: {key} is {flow(value)} {reason}; leave the setting out")
        values[section][name] = value
        self.run = parse(values)
        self.origins[key] = f"auto: {reason}"


def _required(run: Run) -> None:
    problems = []
    if not run.model.source:
        unnamed = f", and the adapter {run.model.adapter} does not name its base" if run.model.adapter is not None else ""
        problems.append(f"model.source is missing{unnamed}: --model FOLDER, a .gguf file, a hub id or builtin:smollm2-135m-instruct")
    if not run.data.train:
        problems.append("data.train is missing: --data FILE, a folder, a glob or builtin:tickets")
    problems += tasks.idle(run.task)
    if problems:
        raise UserError(*problems)


def _fits(located: Located, skeleton: Any, run: Run, device: torch.device) -> loading.Size:
    """The model's size. Raises UserError, before loading, where the weights do not fit, with what would."""
    free, dtype, learns_over_nf4 = hardware.free_memory(device), loading.DTYPES[run.model.dtype], METHODS[run.method.name].NF4

    def needs(nf4: bool) -> tuple[loading.Size, int]:
        size = loading.size_of(skeleton, dtype, nf4, run.model.double_quant)
        return size, size.weight_bytes + size.largest_tensor_bytes

    size, needed = needs(run.model.quantize is not None)
    if needed <= free:
        return size
    if run.model.quantize is None and learns_over_nf4 and needs(True)[1] <= free:
        cure = f"with model.quantize=nf4 they would need {needs(True)[1] / 1e9:.1f} GB"
    else:
        nf4 = f", or {free / NF4_BYTES / 1e9:.1f}B with model.quantize=nf4" if learns_over_nf4 else ""
        cure = f"a model of at most about {free / 2.2e9:.1f}B parameters in bfloat16{nf4} fits here"
    raise loading.too_large(located.name, needed, free, device, cure)


def _room(config: Any, tuning: Tuning, corpus: Corpus, max_length: int) -> None:
    """Raises UserError where the longest document has no place left behind what stands in front of it."""
    in_front, limit = tuning.virtual_tokens + tuning.prefix_tokens, getattr(config.get_text_config(), "max_position_embeddings", None)
    known = [part.lengths_D.max() for part in (corpus.documents, corpus.evaluation) if part is not None and len(part.lengths_D)]
    longest = int(max([max_length] if corpus.chunks else known, default=0))
    if in_front and limit and longest + in_front > limit:
        raise UserError(
            f"documents have up to {longest:,} tokens, {in_front} stand in front of each, and this model takes {limit:,} positions: "
            f"set data.max_length={limit - in_front}, or fewer method.tokens"
        )


def _plan(auto: _Auto, corpus: Corpus, ask: Callable[[Run, int], Question], device: torch.device) -> tuple[int, Plan | Stream, Choice]:
    """Steps, rows, and the level of recompute that fits them into the memory there is."""
    run = auto.run
    longest = run.data.max_length if corpus.chunks else int(corpus.documents.lengths_D.max())
    usual = 1024 if run.model.device == "cpu" else 8192
    wished = 8192 if corpus.chunks else corpus.documents.tokens * run.train.epochs / 100
    most = usual if run.train.optimizer_in_backward else 8192  # a step that is one row
    told = f"at least 100 steps, between 512 and {most} tokens"
    auto.set("train.tokens_per_step", "auto", max(512, min(most, round(wished))), told)
    train = auto.run.train
    assert isinstance(train.tokens_per_step, int)
    left_to_us, row_tokens, why = train.row_tokens == "auto", max(usual, longest), f"{usual} or the longest document"
    plan: Plan | Stream
    if corpus.chunks is not None:
        assert train.steps is not None
        steps, plan = train.steps, Stream(corpus.chunks, train.tokens_per_step, row_tokens, train.seed, run.data.pack, key=corpus.key)
    else:
        plan = Plan(corpus.documents, train.tokens_per_step, row_tokens, train.seed, run.data.pack)
        steps = train.steps or plan.steps_for(train.epochs)
    if train.optimizer_in_backward:
        row_tokens, why = optimizers.row_tokens(auto.run, plan, steps), "the longest step: each is one row"
    if isinstance(train.row_tokens, int):
        row_tokens = train.row_tokens
    shorten = left_to_us and not train.optimizer_in_backward
    choice = memory.choose(auto.run, ask(auto.run, longest), row_tokens, shorten, memory.budget_bytes(train.memory_budget, device))
    if choice.row_tokens != row_tokens:
        row_tokens, why = choice.row_tokens, f"{row_tokens} would need more memory than there is"
    auto.set("train.row_tokens", "auto", row_tokens, why)
    auto.set("train.recompute", "auto", choice.level, choice.reason)
    return steps, replace(plan, row_tokens=max(row_tokens, longest)), choice


def _shared_prefixes(run: Run, documents: Documents, plan: Plan | Stream, tuning: Tuning, tokenizer: Any) -> dict[str, Any]:
    """Of a stream, what its first rows show."""
    known = Plan(documents, plan.tokens_per_step, plan.row_tokens, plan.seed, plan.pack)
    return prefixes.report(run, known, tuning.virtual_tokens, tokenizer.decode)


def _losses(report: dict[str, Any]) -> list[str]:
    """What of the data is not learned, in sentences: a count in data.json alone is not seen."""
    said = []
    if report.get("provisional"):
        rest = report["set_aside"]["not_reached"]
        said.append(
            f"{rest:,} rows are tokenised ahead of the run (data.stream): what is said of the data is of the first {report['rows']:,}"
        )
    if report["dropped"]:
        alike: dict[str, list[str]] = {}  # reasons that differ in what they quote are of one kind
        for row in report["dropped"]:
            alike.setdefault(re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", row["reason"]), []).append(row["reason"])
        kinds = sorted(alike.values(), key=len, reverse=True)
        shown = "; ".join(f"{len(kind):,}: {kind[0]}" for kind in kinds[:REASONS]) + ("; ..." if len(kinds) > REASONS else "")
        said.append(f"{len(report['dropped']):,} of {report['rows']:,} rows are not learned from ({shown}); data.json names them")
    if report["cut"]:
        said.append(f"{report['cut']:,} rows are longer than data.max_length {report['max_length']} and are cut; data.json names them")
    return said


def _out(run: Run, located: Located) -> str:
    source = run.data.train if isinstance(run.data.train, str) else run.data.train[0].source
    data = Path(source.partition("#")[0].removeprefix("builtin:").rstrip("/*")).stem or "data"
    method = "qlora" if run.method.name == "lora" and run.model.quantize else run.method.name
    return f"runs/{located.name}-{method}-{data}".lower().replace(" ", "-")
