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
from tunesmith.methods.layouts.adapter_file import CONFIG, about, check_base, config_of
from tunesmith.models import load as loading
from tunesmith.models.source import Located, locate
from tunesmith.serve.catalog import Model
from tunesmith.tuned import Found, find, renderer_of


@dataclass(frozen=True, slots=True)
class Offered:
    """All that is to be served: the base, the name it is to have (empty: its own), and the adapters by name."""

    base: Found
    name: str
    adapters: dict[str, Found]
    nf4: bool  # every adapter's run was trained over NF4


def read(words: Sequence[str], model: str | None = None) -> Offered:
    """Raises UserError with every folder that cannot be served, two bases, and names that stand twice."""
    problems: list[str] = []
    adapters: list[tuple[str, Found]] = []
    bases: list[tuple[str, Found]] = [("", find(model))] if model else []
    for word in words:
        name, given = _parted(word)
        try:
            found = find(given, model)
            if found.adapter is None:
                _check_model(found)
                bases.append((name or (found.name if found.run is not None else ""), found))
            else:
                adapters.append((name or found.name, _check_adapter(found)))
        except UserError as error:
            problems += error.problems
    if len(bases) > 1:
        problems.append(f"one server has one base: {' and '.join(each.base for _, each in bases)} are two; start a second server (--port)")
    twice = [name for name, count in Counter(name for name, _ in adapters).items() if count > 1]
    problems += [f"two models are to be called {name}; write NAME=DIR" for name in twice]
    if problems:
        raise UserError(*problems)
    name, base = bases[0] if bases else ("", find(adapters[0][1].base))
    nf4 = bool(adapters) and all(found.run is not None and found.run.model.quantize is not None for _, found in adapters)
    return Offered(base, name, dict(adapters), nf4)


def check(offered: Offered) -> None:
    """Raises UserError for every adapter that does not fit the base: by shapes and fingerprints, before any weight of it is read."""
    located = locate(offered.base.base)
    folder, name = located.folder, offered.name or own_name(located)
    problems: list[str] = []
    if name in offered.adapters:
        problems.append(f"{name} is the base's own name; give the adapter another: NAME={offered.adapters[name].adapter}")
    skeleton = loading.skeleton(loading.load_config(folder))
    for found in offered.adapters.values():
        assert found.adapter is not None
        try:
            file = layout.read(found.adapter)
            layout.fit(file, skeleton, device="meta")
            check_base(file, folder)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def found(folder: Path) -> Found:
    """The adapter in a folder that is to be served from now on. Raises UserError."""
    adapter = find(str(folder))
    if adapter.adapter is None:
        raise UserError(f"{folder} is a model by itself, and one server has one base; start a second server")
    return _check_adapter(adapter)


def _check_model(found: Found) -> None:
    folder = Path(found.base).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: neither a run folder, nor an adapter ({CONFIG}), nor a model (config.json)")
    _check_writes(folder, found)


def _check_adapter(found: Found) -> Found:
    assert found.adapter is not None
    _check_writes(found.adapter, found)
    return found


def _check_writes(folder: Path, found: Found) -> None:
    if "head" in about(folder):
        said = found.folder or folder
        raise UserError(f"{said} predicts labels with a head of its own and writes no text; ask it by `tunesmith chat {said}`")


def own_name(located: Located) -> str:
    """What a base is called unless the user names it: its hub id, `builtin:NAME`, or its folder's name."""
    return located.origin.partition("@")[0] if located.kind in ("hub", "builtin") else located.name


class Feeding:
    """How the models of one base are fed: its tokenizer and template, and of each run what it said about both."""

    def __init__(self, located: Located, tokenizer: Any, model_config: Any, name: str = "", run: config.Run | None = None):
        self.located, self.tokenizer, self.config = located, tokenizer, model_config
        facts = {"method": run.method.name} if run is not None else {}
        called = name or own_name(located)
        self.base = Model(called, self._renderer(run), None, called, facts=facts)

    def adapter(self, name: str, found: Found) -> Model:
        """An adapter as the catalog has it, fed as it was trained."""
        renderer = self.base.renderer if found.run is None else self._renderer(found.run)
        return Model(name, renderer, found.adapter, self.base.name, facts=_facts(found))

    def _renderer(self, run: config.Run | None) -> Any:
        return renderer_of(self.tokenizer, self.located.folder, self.config, run.data if run is not None else config.Data())


def feeding(located: Located, name: str, run: config.Run | None) -> Feeding:
    """The same without a model in memory, for engines that have it in theirs. Raises UserError."""
    return Feeding(located, loading.load_tokenizer(located.folder), loading.load_config(located.folder), name, run)


def _facts(found: Found) -> dict[str, Any]:
    """What is told of an adapter beside its name."""
    if found.run is not None:
        return {"method": found.run.method.name, "run": str(found.folder)}
    assert found.adapter is not None
    return {"method": str(config_of(found.adapter).get("peft_type", "")).lower(), "adapter": str(found.adapter)}


def _parted(word: str) -> tuple[str, str]:
    """(name or "", folder) of [NAME=]DIR; a folder whose own name holds a sign of equality is one."""
    name, sign, path = word.partition("=")
    return (name, path) if sign and not Path(word).expanduser().exists() else ("", word)
