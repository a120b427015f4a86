"""What is to be exported, found and described without reading its weights."""

from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.errors import UserError
from tunesmith.export.target import Source
from tunesmith.export.whole import Whole
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import CONFIG, about, check_base
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import score
from tunesmith.models.source import Located, locate
from tunesmith.tuned import renderer_of


def describe(given: str, model: str | None = None) -> Source:
    """A run folder, an adapter folder (its base from its config, or `model`), or a model. Raises UserError with what is missing."""
    base, adapter, run, settings = _places(Path(given).expanduser(), given, model)
    located = locate(base, headed=adapter is None)
    skeleton = loading.skeleton(loading.load_config(located.folder))
    if adapter is None:
        tuning = Tuning({}, {}, head=score.read(located.folder, about(located.folder).get("head"), "cpu"))
    else:
        file = layout.read(adapter)
        tuning = layout.fit(file, skeleton, device="meta")
        check_base(file, located.folder)
    data = settings.data if settings is not None else config.Data()
    renderer = renderer_of(loading.load_tokenizer(located.folder), located.folder, skeleton.config, data)
    head: Any = tuning.head
    return Source(
        name=Path(given).resolve().name if run is not None or adapter is not None else located.name,
        given=given,
        model=model,
        base=located.folder,
        base_name=_opened_as(located),
        adapter=adapter,
        run=run,
        quantized=settings is not None and adapter is not None and settings.model.quantize is not None,
        tuning=tuning,
        whole=Whole(given, model, located.folder, adapter, renderer.stops, head is not None),
        renderer=renderer if head is None else Labelled(renderer, head.task, head.labels, head.input),
    )


def to_be(out: Path, located: Located, tuning: Tuning, renderer: Any, *, quantized: bool) -> Source:
    """What a run that has not begun will leave in `out`: enough for a target's `check`."""
    return Source(
        name=out.resolve().name,
        given=str(out),
        model=None,
        base=located.folder,
        base_name=_opened_as(located),
        adapter=out / "adapter" if tuning.adapter else None,
        run=out,
        quantized=quantized and bool(tuning.adapter),
        tuning=tuning,
        whole=Whole(str(out), None, located.folder, None, set(), tuning.head is not None),
        renderer=renderer,
    )


def _places(folder: Path, given: str, model: str | None) -> tuple[str, Path | None, Path | None, config.Run | None]:
    """(the base or whole model, its adapter, the run folder, the run's settings)."""
    if (folder / "run.yaml").is_file():
        settings = config.load(folder / "run.yaml").run
        if (folder / "model" / "config.json").is_file():
            return str(folder / "model"), None, folder, settings
        if layout.is_adapter(folder / "adapter"):
            return model or settings.model.source, folder / "adapter", folder, settings
        raise UserError(f"{folder} holds a run without a result yet; finish it with `tunesmith resume {folder}`")
    if layout.is_adapter(folder):
        base = model or layout.base_of(folder)
        if not base:
            raise UserError(f"{folder / CONFIG} does not name its base model (base_model_name_or_path); give it with --model")
        return base, folder, None, None
    return given, None, None, None


def _opened_as(located: Located) -> str:
    """What `transformers` and `peft` open the base by: a hub id, or a folder."""
    return located.origin.partition("@")[0] if located.kind == "hub" else str(located.folder.resolve())
