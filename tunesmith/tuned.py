"""A base model with what was trained in its place: a run folder, an adapter folder, or any model by itself. What `evaluate`,
`chat` and `merge` work on."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith import config, hardware
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.data.rendering.render import Renderer
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import CONFIG, about, check_base
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import score, slots
from tunesmith.models.load import Base
from tunesmith.models.matrix import matrix
from tunesmith.models.score import Score
from tunesmith.models.source import Located, locate

Refuse = Callable[[Tuning], None]  # raises UserError for what the caller cannot use


@dataclass
class Tuned:
    """Ready to answer. The adapter, where there is one, is in place."""

    name: str
    base: Base
    located: Located  # the base; for a fully tuned run, the run's own model folder
    renderer: Renderer | Labelled  # the second where a task's head predicts
    tuning: Tuning = field(default_factory=lambda: Tuning({}, {}))
    run: config.Run | None = None

    @property
    def model(self) -> Any:
        return self.base.model

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def head(self) -> Score | None:
        """What predicts labels in place of text, where the run trained a head."""
        return self.tuning.head

    @property
    def has_adapter(self) -> bool:
        return bool(self.tuning.adapter)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base itself for a while. Raises UserError where the base's own weights were trained."""
        if self.run is not None and not self.has_adapter:
            raise UserError(
                f"{self.name} trained the base's own weights, so the base is not in it; name it: --against {self.run.model.source}"
            )
        slots.lift(self.model, self.tuning.adapter)
        try:
            yield
        finally:
            slots.place(self.model, self.tuning.adapter)


def open_tuned(
    name: str, *, model: str | None = None, device: str = "auto", dtype: str = "auto", nf4: bool = False, refuse: Refuse | None = None
) -> Tuned:
    """Open a run folder, an adapter folder (its base from its config, or `model`), or a model; with `nf4` a model's weights as codes.

    `refuse` is asked before any weight is read, with an adapter's shapes alone. Raises UserError with what is missing.
    """
    found = find(name, model)
    return _open(found, device, dtype, refuse, nf4)


@dataclass(frozen=True, slots=True)
class Found:
    """What a word on the command line means, read off the disk alone."""

    name: str  # the folder's own; a model's as it was given
    base: str  # what `locate` opens: the base, or the whole model where there is no adapter
    adapter: Path | None = None
    folder: Path | None = None  # of the run
    run: config.Run | None = None


def find(given: str, model: str | None = None) -> Found:
    """A run folder, an adapter folder (over `model`, or the base that it names), or else a model. Raises UserError."""
    folder = Path(given).expanduser()
    if (folder / "run.yaml").is_file():
        run, name = config.load(folder / "run.yaml").run, folder.resolve().name
        if (folder / "model" / "config.json").is_file():
            return Found(name, str(folder / "model"), None, folder, run)
        if layout.is_adapter(folder / "adapter"):
            return Found(name, model or run.model.source, folder / "adapter", folder, run)
        raise UserError(f"{folder} holds a run without a result yet; finish it with `tunesmith resume {folder}`")
    if layout.is_adapter(folder):
        base = model or layout.base_of(folder)
        if not base:
            raise UserError(f"{folder / CONFIG} does not name its base model (base_model_name_or_path); give it with --model")
        return Found(folder.resolve().name, base, folder)
    return Found(given, given)


def renderer_of(tokenizer: Any, folder: Path, model_config: Any, data: config.Data) -> Renderer:
    """The one that a run with these settings was trained through; `folder` and `model_config` are those of its base."""
    date = datetime.date.today().isoformat() if data.date == "today" else data.date  # a run's own date is fixed
    return Renderer(tokenizer, thinking=data.thinking, stop_ids=loading.stop_ids(folder, model_config), date=date)


def _open(found: Found, device: str, dtype: str, refuse: Refuse | None, nf4: bool) -> Tuned:
    run = found.run
    file = layout.read(found.adapter) if found.adapter else None  # a broken adapter is said before the model is loaded
    located = locate(found.base, headed=file is None)
    place = hardware.device(device if device != "auto" or run is None else _device(run.model.device))
    if dtype == "auto" and run is not None and run.model.dtype != "auto":
        dtype = run.model.dtype
    chosen: torch.dtype = loading.DTYPES[dtype] if dtype != "auto" else hardware.default_dtype(place)[0]
    quantize = nf4 or (run is not None and run.model.quantize is not None and file is not None)
    double = run.model.double_quant if run else True
    skeleton = loading.skeleton(loading.load_config(located.folder))
    shapes = Tuning({}, {})
    if file is not None:  # another base is refused before it is loaded
        shapes = layout.fit(file, skeleton, device="meta")
        check_base(file, located.folder)
    if refuse is not None:
        refuse(shapes)
    size = loading.size_of(skeleton, chosen, quantize, double)
    needed, free = size.weight_bytes + size.largest_tensor_bytes, hardware.free_memory(place)
    if needed > free:
        raise loading.too_large(located.name, needed, free, place, "close other programs, or take a smaller model")
    head = None if file else score.read(located.folder, about(located.folder).get("head"), place)
    own_head = head is None and (file is None or "head" not in file.facts)
    base = loading.load(located.folder, dtype=chosen, quantize=quantize, double_quant=double, device=place, own_head=own_head)
    renderer = renderer_of(base.tokenizer, located.folder, base.model.config, run.data if run else config.Data())
    tuning = layout.fit(file, base.model, place) if file else Tuning({}, {}, head=head)
    tuning.train(False)
    for parameter in tuning.parameters.values():
        parameter.requires_grad_(False)
    method.settle(base.model, tuning, lambda path: matrix(located.folder, path, base.model))
    slots.place(base.model, tuning.adapter)
    said: Any = tuning.head
    fed = renderer if said is None else Labelled(renderer, said.task, said.labels, said.input)
    return Tuned(found.name, base, located, fed, tuning, run)


def _device(name: str) -> str:
    """A run's device where it is there, else whatever this machine has: a run made on a GPU can be read on a CPU."""
    return name if not name.startswith("cuda") or torch.cuda.is_available() else "auto"
