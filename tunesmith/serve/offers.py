"""What `tunesmith serve [NAME=]DIR...` offers: one base model and adapters over it, read before anything is loaded.

A folder is a run, an adapter in `peft`'s layout, or a model. A run that trained the base's own weights is a base of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import CONFIG, about, config_of
from tunesmith.serve.catalog import Model
from tunesmith.tuned import Tuned, renderer_of


@dataclass(frozen=True, slots=True)
class Offer:
    """One adapter under a name. `said` is the folder as the user wrote it, `folder` the adapter's own."""

    name: str
    said: Path
    folder: Path
    base: str  # as its run or its config names it
    run: config.Run | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """All that is to be served: what to open as the base, under which name (empty: its own), and the adapters."""

    base: str
    name: str
    offers: tuple[Offer, ...]
    nf4: bool  # every adapter's run was trained over NF4


def read(words: Sequence[str], model: str | None = None) -> Offered:
    """Raises UserError with every folder that cannot be served, two bases, and names that stand twice."""
    problems: list[str] = []
    offers: list[Offer] = []
    bases: list[tuple[str, str]] = [(model, "")] if model else []  # (what to open, its name)
    for word in words:
        name, path = _parted(word)
        try:
            if (found := offer(name, path)) is not None:
                offers.append(found)
            else:
                bases.append((str(path), name))
        except UserError as error:
            problems += error.problems
    if len(bases) > 1:
        problems.append(f"one server has one base: {' and '.join(source for source, _ in bases)} are two; start a second server (--port)")
    named = list(dict.fromkeys(each.base for each in offers if each.base))
    if not bases and not named and not problems:
        problems.append("the adapters do not name their base model (base_model_name_or_path); give it with --model")
    twice = [name for name, count in Counter(each.name for each in offers).items() if count > 1]
    problems += [f"two models are to be called {name}; write NAME=DIR" for name in twice]
    if problems:
        raise UserError(*problems)
    source, name = bases[0] if bases else (named[0], "")
    nf4 = bool(offers) and all(each.run is not None and each.run.model.quantize is not None for each in offers)
    return Offered(source, name, tuple(offers), nf4)


def offer(name: str, path: Path) -> Offer | None:
    """The adapter in a folder; None where the folder holds a model of its own. Raises UserError."""
    run = config.load(path / "run.yaml").run if (path / "run.yaml").is_file() else None
    folder = path / "adapter" if run is not None else path
    name = name or path.resolve().name
    if run is not None and (path / "model" / "config.json").is_file():
        return None
    if not layout.is_adapter(folder):
        if run is not None:
            raise UserError(f"{path} holds a run without a result yet; finish it with `tunesmith resume {path}`")
        if path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"{path}: neither a run folder, nor an adapter ({CONFIG}), nor a model (config.json)")
        return None
    if "head" in about(folder):
        raise UserError(f"{path} predicts labels with a head of its own and writes no text; ask it by `tunesmith chat {path}`")
    return Offer(name, path, folder, run.model.source if run is not None else layout.base_of(folder), run)


def base_model(opened: Tuned, name: str) -> Model:
    """The base as the catalog has it, under its own id: a hub id, `builtin:NAME`, or its folder's name."""
    located = opened.located
    own = located.origin.partition("@")[0] if located.kind in ("hub", "builtin") else opened.name if opened.run else located.name
    called = name or own
    return Model(called, opened.renderer, None, called, facts={"method": opened.run.method.name} if opened.run else {})


def adapter_model(opened: Tuned, base: Model, found: Offer) -> Model:
    """An adapter as the catalog has it, fed as it was trained."""
    renderer = opened.renderer
    if found.run is not None:
        renderer = renderer_of(opened.tokenizer, opened.located.folder, opened.model.config, found.run.data)
    return Model(found.name, renderer, found.folder, base.name, facts=facts(found))


def facts(found: Offer) -> dict[str, Any]:
    """What is told of an adapter beside its name."""
    if found.run is not None:
        return {"method": found.run.method.name, "run": str(found.said)}
    return {"method": str(config_of(found.folder).get("peft_type", "")).lower(), "adapter": str(found.said)}


def _parted(word: str) -> tuple[str, Path]:
    """(name or "", folder) of [NAME=]DIR; a folder whose own name holds a sign of equality is one."""
    name, sign, path = word.partition("=")
    if not sign or Path(word).expanduser().exists():
        return "", Path(word).expanduser()
    return name, Path(path).expanduser()
