"""The whole model of what is exported: its own folder where the model's weights were trained, else what merging makes of the adapter."""

import dataclasses
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tunesmith.export import bases
from tunesmith.export.folder import name_both, name_stops
from tunesmith.export.merge import WEIGHTS
from tunesmith.models import load as loading
from tunesmith.models.matrix import tensor_files


class Whole:
    """What is asked of it is measured once, when it is first asked."""

    def __init__(self, given: str, model: str | None, base: Path, adapter: Path | None, stops: set[int], headed: bool):
        self.given, self.model, self.base, self.adapter, self.stops, self.headed = given, model, base, adapter, stops, headed

    @cached_property
    def trial(self) -> bases.Trial | None:
        """Which base the adapter is merged into, and what was measured; None without an adapter. Raises UserError."""
        return None if self.adapter is None else bases.trial(self.given, model=self.model)

    def write(self, folder: Path) -> dict[str, Any]:
        """Fill a folder that `transformers` opens; facts about it. Raises UserError for what cannot be merged."""
        if self.trial is None:
            copy(self.base, folder)
            if not self.headed:
                name_stops(folder, self.stops)
            name_both(folder)
            return {"merged": False}
        written = bases.write(self.trial, folder)
        return {
            "merged": True,
            "base_weights": self.trial.kind,
            "trained_over": self.trial.trained_over,
            "changed_tensors": written.changed,
            "tensors": written.tensors,
        }

    def in_memory(self) -> Any:
        """The model as `write` writes it, in fp32, without its task's head; nothing is read from what was written."""
        model = loading.load(self.base, dtype=torch.float32, own_head=not self.headed).model
        if self.trial is not None:
            bases.put(model, self.trial.foldings[self.trial.kind])
        return model

    @property
    def head(self) -> Any:
        """The task's head that predicts, where there is one."""
        return None if self.trial is None else self.trial.live.head

    def from_trained(self, model: Any) -> dict[str, Any] | None:
        """How far a model is from the adapter as it was trained, measured on the prompts of `bases.trial`."""
        if self.trial is None:
            return None
        live = self.trial.live
        return dataclasses.asdict(live.apart(live.ask(model)))


def copy(source: Path, folder: Path) -> None:
    """A model folder without its weights in other formats, which would stand beside it unchanged."""
    weights = {path.name for path in tensor_files(source).values()}
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and (path.name in weights or path.suffix not in WEIGHTS):
            shutil.copyfile(path, folder / path.name)
