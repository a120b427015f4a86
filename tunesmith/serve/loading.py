"""Adapters come and go in a running server, and a name answers with what the registry says that it means.

A folder that is given at the start under a name, and that the registry does not know, is its newest version and what the name means from
now on. One that it knows changes nothing: after a restart with the same command a name still means what it was pointed to.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.serve.ask import Engine
from tunesmith.serve.catalog import Catalog, Model
from tunesmith.serve.registry import Registry, Version, check_shares, chosen

NAME = re.compile(r"[A-Za-z0-9][\w.@:/-]{0,127}")


@dataclass(frozen=True, slots=True)
class Loading:
    """What is changed. `opened` reads a run or adapter folder as a model for the catalog; UserError where it does not fit."""

    engine: Engine
    catalog: Catalog
    opened: Callable[[str, Path], Model]
    lock: threading.Lock = field(default_factory=threading.Lock)  # two loads of one name would cross


def serve(loading: Loading, name: str, folder: Path) -> Model:
    """Let a folder answer under a name; one of that name is exchanged. Raises ValueError for the name, UserError for the folder."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a model: letters, digits and . _ - @ : / (at most 128), a letter or digit first")
    if name == loading.catalog.base.name:
        raise ValueError(f"{name} is the base's own name; take another")
    with loading.lock:
        model = loading.opened(name, folder)
        loading.engine.load(name, model.folder or folder)
        loading.catalog.add(model)
        loading.catalog.split(name, None)
    return model


def forget(loading: Loading, name: str) -> None:
    """Raises LookupError for a name that is not there, ValueError for the base's."""
    with loading.lock:
        try:
            loading.catalog.remove(name)  # first: nothing new is asked of the engine
        except LookupError:
            raise LookupError(f"no adapter {name!r} is loaded") from None
        loading.engine.unload(name)


def serve_version(loading: Loading, registry: Registry, name: str, version: Version) -> Model:
    """As `serve`. Raises ValueError for a folder that is gone or has changed, too."""
    if why := registry.trouble(version):
        raise ValueError(why)
    return serve(loading, name, version.folder)


def answer_with(loading: Loading, registry: Registry, name: str, shares: Mapping[int, float]) -> None:
    """Let one version answer under a name, or several, each for its share of the users, who can be asked for as NAME@3, too.
    Raises LookupError for versions that there are not, and what `serve_version` raises."""
    check_shares(shares)
    versions = [registry.resolve(f"{name}@{version}") for version in shares]
    most = max(versions, key=lambda version: shares[version.version])
    if len(versions) > 1:
        for version in versions:
            serve_version(loading, registry, version.spelled, version)
    if len(versions) == 1 or loading.catalog.find(name) is None:
        serve_version(loading, registry, name, most)
    if len(versions) > 1:
        loading.catalog.split(name, lambda key: f"{name}@{chosen(name, shares, key)}")


def follow(loading: Loading, registry: Registry, given: Mapping[str, Path]) -> Iterator[str]:
    """What a server does with its registry at the start: takes in what was given ({name: folder}, already loaded), and lets every name
    answer as the registry says. Yields a sentence for each name that does not answer with what was given, or not at all."""
    for name, folder in given.items():
        newest = max((each.version for each in registry.versions(name)), default=0)
        version = registry.register(name, folder)
        if version.version > max(newest, 1):
            registry.point(name, version.version, "given at the server's start")
    for name in registry.names():
        shares = registry.history(name)[-1].shares
        if name in given and len(shares) == 1 and registry.resolve(name).folder == given[name].expanduser().resolve():
            continue
        try:
            answer_with(loading, registry, name, shares)
        except (UserError, ValueError, LookupError) as error:
            yield f"{name}: the registry points it to {_spelled(name, shares)}, which cannot be served: {error}"
        else:
            yield f"{name}: {_spelled(name, shares)}, as the registry points it"


def _spelled(name: str, shares: Mapping[int, float]) -> str:
    if len(shares) == 1:
        return f"{name}@{next(iter(shares))}"
    return " and ".join(f"{name}@{version} for {share:.0%}" for version, share in shares.items())
