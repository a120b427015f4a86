"""Several LoRAs of one base made into one, ready to be written: `methods/layouts/compose.py` says how, this file over which base."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.methods.layouts import compose, layout
from tunesmith.methods.layouts.adapter_file import AdapterFile, check_base
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models.fingerprint import fingerprint
from tunesmith.models.source import locate, opened_as


@dataclass(frozen=True)
class Combined:
    """One LoRA, as modules for its base. `apart`: ‖its update − the weighted sum‖ / ‖the weighted sum‖, 0 where that is exact."""

    tuning: Tuning
    skeleton: Any
    base: str  # what `transformers` and `peft` open the base by
    layers: int
    ranks: list[int]  # all that there are, rising
    apart: float
    notes: list[str]  # sentences that the user should read

    def write(self, folder: Path) -> None:
        """The adapter folder."""
        layout.write(folder, self.skeleton, self.tuning, self.base)


def combine(files: Sequence[tuple[AdapterFile, float]], how: str, model: str | None = None) -> Combined:
    """The weighted sum of the updates (`how`: a word of `compose.HOW`), over the base that they name, or `model`.

    Raises UserError with all that cannot be combined, and where an adapter was made for another base.
    """
    combined = compose.HOW[how](files)
    if model is None and (others := compose.other_bases(files)):
        cure = "  where only the names differ, --model M says that M is the base of all"
        raise UserError("only adapters of one base can be combined:", *[f"  {each}" for each in others], cure)
    source = model or combined.base
    if not source:
        raise UserError(f"{files[0][0].folder} does not name its base; give it with --model")
    located = locate(source)
    skeleton = loading.skeleton(loading.load_config(located.folder))
    for file, _ in files:
        layout.fit(file, skeleton, device="meta")
        check_base(file, located.folder)
    tuning = layout.fit(combined, skeleton, device="cpu")
    tuning.about["base"] = fingerprint(located.folder)
    scales = combined.facts["scales"]
    ranks = sorted({combined.tensors[f"{path}.A"].shape[0] for path in scales})
    apart = compose.deviation(combined, files)
    return Combined(tuning, skeleton, opened_as(located), len(scales), ranks, apart, _notes(files, how, apart))


def _notes(files: Sequence[tuple[AdapterFile, float]], how: str, apart: float) -> list[str]:
    notes = []
    if how == "linear":
        notes.append(f"the factors were averaged: the update differs from the weighted sum by {apart:.0%}; --how concat is exact")
    for file, _ in files:
        if (file.about.get("pissa") or {}).get("quantised"):
            notes.append(f"{file.folder} was trained over NF4 of a residual; it takes part as the LoRA that it is served as")
    return notes
