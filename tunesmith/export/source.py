"""What is to be exported, found and described without reading its weights."""

from pathlib import Path
from typing import Any

from tunesmith import config
from tunesmith.data.rendering.labelled import Labelled
from tunesmith.export.target import Source
from tunesmith.export.whole import Whole
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts.adapter_file import about, check_base
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading
from tunesmith.models import score
from tunesmith.models.source import Located, locate, opened_as
from tunesmith.tuned import find, renderer_of


def describe(given: str, model: str | None = None) -> Source:
    """A run folder, an adapter folder (its base from its config, or `model`), or a model. Raises UserError with what is missing."""
    found = find(given, model)
    located = locate(found.base, headed=found.adapter is None)
    skeleton = loading.skeleton(loading.load_config(located.folder))
    if found.adapter is None:
        tuning = Tuning({}, {}, head=score.read(located.folder, about(located.folder).get("head"), "cpu"))
    else:
        file = layout.read(found.adapter)
        tuning = layout.fit(file, skeleton, device="meta")
        check_base(file, located.folder)
    data = found.run.data if found.run is not None else config.Data()
    renderer = renderer_of(loading.load_tokenizer(located.folder), located.folder, skeleton.config, data)
    head: Any = tuning.head
    return Source(
        name=found.name if found.folder is not None or found.adapter is not None else located.name,
        given=given,
        model=model,
        base=located.folder,
        base_name=opened_as(located),
        adapter=found.adapter,
        run=found.folder,
        quantized=found.run is not None and found.adapter is not None and found.run.model.quantize is not None,
        tuning=tuning,
        whole=Whole(given, model, located.folder, found.adapter, renderer.stops, head is not None),
        renderer=renderer if head is None else Labelled(renderer, head.task, head.labels, head.input),
    )


def to_be(out: Path, located: Located, tuning: Tuning, renderer: Any, *, quantized: bool) -> Source:
    """What a run that has not begun will leave in `out`: enough for a target's `check`."""
    return Source(
        name=out.resolve().name,
        given=str(out),
        model=None,
        base=located.folder,
        base_name=opened_as(located),
        adapter=out / "adapter" if tuning.adapter else None,
        run=out,
        quantized=quantized and bool(tuning.adapter),
        tuning=tuning,
        whole=Whole(str(out), None, located.folder, None, set(), tuning.head is not None),
        renderer=renderer,
    )
