"""An adapter to go on from (`model.adapter`): where it is, what a run may still choose of its method, and its modules."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from tunesmith.config import Run
from tunesmith.errors import UserError
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import CONFIG
from tunesmith.methods.tuning import Tuning

OWN = ("name", "dropout", "plus_ratio")  # settings of the method that are the new run's; the rest is the adapter's, or over


def refuse_idle(method: Any, fixed: Container[str]) -> None:
    """Raises UserError for settings that say how an adapter begins: this one has begun. `fixed` are those that its file decides."""
    idle = [
        name
        for name, field in type(method).model_fields.items()
        if name not in OWN and name not in fixed and getattr(method, name) != field.default
    ]
    if idle:
        raise UserError(*[f"method.{name} says how an adapter begins, and that of model.adapter has begun; leave it out" for name in idle])


def adapter_to_go_on_from(run: Run, model: Any, device: torch.device | str) -> Tuning:
    """The adapter that `model.adapter` names, with the dropout and the ratios of learning rates of this run's method."""
    assert run.model.adapter is not None
    file = layout.read(adapter_folder(run.model.adapter))
    tuning = layout.fit(file, model, device)
    if file.about.get("pissa", {}).get("quantised") and run.model.quantize is None:
        tuning.notes.append(
            "the adapter was trained over NF4 codes, and goes on over weights that are not rounded: it begins where its folder is served, "
            "not where it ended; model.quantize=nf4 begins there"
        )
    modules: list[Any] = list(tuning.adapter.values())
    for module in modules:
        if hasattr(module, "dropout"):
            module.dropout = getattr(run.method, "dropout", 0.0)
    if (ratio := getattr(run.method, "plus_ratio", 1.0)) != 1:
        tuning.learning_rate_ratios.update({name: ratio for name in tuning.parameters if name.endswith(".B")})
    return tuning


def adapter_folder(name: str) -> Path:
    """The adapter folder that a run folder or an adapter folder means. Raises UserError."""
    path = Path(name).expanduser()
    for candidate in (path, path / "adapter"):
        if layout.is_adapter(candidate):
            return candidate
    raise UserError(f"{name}: neither a run folder nor an adapter folder ({CONFIG} is missing)")
