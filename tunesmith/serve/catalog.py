"""Which models a server offers, by name, and how each is fed: with the renderer that it was trained with.

The base stands under its own id. What is not in the catalog is not answered: never by the base in its place.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class Model:
    """One name that can be asked for."""

    name: str
    renderer: Any  # data.rendering.render.Renderer
    folder: Path | None = None  # of the adapter; None for the base
    base: str = ""  # the base's name
    created: int = field(default_factory=lambda: int(time.time()))
    facts: dict[str, Any] = field(default_factory=dict)  # method, run, version, scores, data hash: what /v1/models tells beside the name


class Catalog:
    """The names, safe to read and change from any thread."""

    def __init__(self, base: Model):
        self.base = base
        self._models: dict[str, Model] = {base.name: base}
        self._splits: dict[str, Callable[[str], str]] = {}
        self._lock = threading.Lock()

    def find(self, name: str, key: str = "") -> Model | None:
        """The model of a name; of one that is split, that of a key's share (the user whom a request names)."""
        with self._lock:
            if key_to_name := self._splits.get(name):
                return self._models.get(key_to_name(key)) or self._models.get(name)
            return self._models.get(name)

    def split(self, name: str, key_to_name: Callable[[str], str] | None) -> None:
        """Let other names answer for this one, each for some keys; None: itself again. Raises LookupError for an unknown name."""
        with self._lock:
            if name not in self._models:
                raise LookupError(name)
            self._splits.pop(name, None)
            if key_to_name is not None:
                self._splits[name] = key_to_name

    def every(self) -> list[Model]:
        with self._lock:
            return list(self._models.values())

    def add(self, model: Model) -> None:
        """Offer it; one of the same name is exchanged. Raises UserError for the base's name."""
        with self._lock:
            if model.name == self.base.name:
                raise UserError(f"{model.name} is the base's own name; give the adapter another: NAME={model.folder}")
            self._models[model.name] = model

    def remove(self, name: str) -> None:
        """Raises LookupError for an unknown name, ValueError for the base's."""
        with self._lock:
            if name == self.base.name:
                raise ValueError(f"{name} is the base and stays")
            if self._models.pop(name, None) is None:
                raise LookupError(name)
            self._splits.pop(name, None)
