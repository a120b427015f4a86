"""Which weights an adapter is merged into, and how far the result is from the adapter itself.

    original       the checkpoint's own weights: what a server that loads the base and the adapter side by side computes with
    dequantised    what NF4 made of them, layer by layer: what the adapter was trained over. For PiSSA and LoftQ, whose layers
                   hold the codes of a residual, those codes

    W_original    = W + s·B·A              W_dequantised = nf4(W) + s·B·A   (of a residual: nf4(W - s·B0·A0) + s·B·A)

Over fp32 and bf16 there is only the first. Over NF4 both are measured against the live adapter, in the memory of one model, and
the nearer is written. Two models never stand in memory at once.

Shapes: I inputs, O outputs of a layer.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.export import merge
from tunesmith.export.crown import crown
from tunesmith.export.folder import name_both, name_stops
from tunesmith.export.live import Apart, Live, listen
from tunesmith.export.merge import Folding, Merged
from tunesmith.methods.method import unmergeable
from tunesmith.models import load as loading
from tunesmith.models import nf4, slots
from tunesmith.tuned import Tuned, open_tuned

Kind = Literal["original", "dequantised"]
KINDS: tuple[Kind, ...] = ("original", "dequantised")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Dequantised:
    """What NF4 leaves of a matrix in a layer of `dtype`, with the update in it where there is one."""

    module: Any
    dtype: torch.dtype
    double: bool
    device: torch.device

    def folded(self, weight_OI: Tensor) -> Tensor:
        """[out, in] in fp32."""
        left_OI = nf4.rounded(weight_OI.to(self.device, self.dtype), self.double, self.dtype)
        return left_OI if self.module is None else self.module.folded(left_OI)


@dataclass(frozen=True, slots=True)
class Parted:
    """A trained copy of one of two matrices that were one: each has its own tensor in what is written."""

    copy: Any

    def folded(self, weight: Tensor) -> Tensor:
        """The copy."""
        trained: Tensor = self.copy.weight.detach().float()
        return trained

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.copy.parameters())


def modules_over(tuned: Tuned, kind: Kind) -> dict[str, Any]:
    """{path: module with folded(weight)} that turns the checkpoint's matrices into those of the merged model."""
    adapter: dict[str, Any] = {
        path: Parted(module) if getattr(module, "split_from", "") else module for path, module in tuned.tuning.adapter.items()
    }
    if kind == "original":
        return served(adapter)
    for path, layer in nf4_layers(tuned.model):
        module = adapter.get(path)
        if not getattr(module, "rounded", None):  # those take the checkpoint's matrix, and round what is left of it themselves
            adapter[path] = Dequantised(module, layer.dtype, layer.is_double, layer.weight.device)
    return adapter


def served(adapter: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter as it stands beside the original weights: what was trained over the codes of a residual is a plain LoRA there."""
    return {path: module.as_lora() if getattr(module, "rounded", None) else module for path, module in adapter.items()}


def nf4_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """(path, layer) of those that are kept as NF4 codes."""
    return [(path, layer) for path, layer in model.named_modules() if nf4.is_nf4(layer)]


@dataclass
class Trial:
    """Everything that writing a merged model takes, without a model in memory. `kind` is what will be written."""

    kind: Kind
    foldings: dict[Kind, Folding]
    live: Live
    bare: Any  # a skeleton of the base
    stops: set[int]
    dtype: torch.dtype
    device: torch.device
    trained_over: str  # nf4, or the dtype's name
    apart: dict[Kind, Apart] = field(default_factory=dict)  # measured in memory, over NF4
    beside: Apart | None = None  # over NF4: base and adapter side by side over the original weights
    beside_logits: list[Tensor] = field(default_factory=list)


def trial(source: str, *, base: Literal["auto"] | Kind = "auto", model: str | None = None, tell: Tell = lambda sentence: None) -> Trial:
    """Open what is to be merged, ask it, and over NF4 measure both bases; no model is left in memory.

    Raises UserError where there is nothing to merge, where it cannot be merged, and for a base that it was not trained over.
    """
    gc.collect()  # what a run leaves behind, where one has just ended here
    tuned = open_tuned(source, model=model, refuse=partial(refuse, source))
    if base == "dequantised" and not tuned.base.quantized:
        run = "" if tuned.run is not None else "; where a run over NF4 made it, name the run's folder, which says so"
        raise UserError(f"--base dequantised: {source} was not trained over NF4, so there is one base, the original weights{run}")
    tell("asking the adapter")
    found = _described(tuned, listen(tuned))
    placed = served(tuned.tuning.adapter)
    slots.lift(tuned.model, tuned.tuning.adapter)
    del tuned
    gc.collect()  # layers and what stood beside them name each other
    if len(found.foldings) > 1:
        tell("measuring both bases")
        _measure(found, placed)
        found.kind = base if base != "auto" else better(found.apart)
    return found


def refuse(source: str, tuning: Any) -> None:
    """Raises UserError for what cannot be merged, before its base is loaded."""
    if not tuning.adapter:
        whole = f"; its whole model is in {source}/model" if (Path(source) / "run.yaml").is_file() else ""
        raise UserError(f"{source} holds no adapter: there is nothing to merge{whole}")
    if misfit := unmergeable(tuning, source):
        raise UserError(f"{source}: {misfit}")


def _described(tuned: Tuned, live: Live) -> Trial:
    bare = loading.skeleton(loading.load_config(tuned.located.folder))
    kinds = KINDS if tuned.base.quantized else KINDS[:1]
    foldings: dict[Kind, Folding] = {}
    for kind in kinds:
        modules = modules_over(tuned, kind)
        parted = merge.parted(bare, modules, tuned.head is not None)
        foldings[kind] = merge.folding(tuned.located.folder, modules, merge.orientation(bare), tuned.model.base_model_prefix, parted)
    over = "nf4" if tuned.base.quantized else str(tuned.base.dtype).removeprefix("torch.")
    renderer: Any = tuned.renderer.renderer if tuned.renderer.labelled else tuned.renderer
    return Trial("original", foldings, live, bare, renderer.stops, tuned.base.dtype, tuned.model.device, over)


def _measure(found: Trial, adapter: dict[str, nn.Module]) -> None:
    """Both bases, in one model: base and adapter side by side first, then with the matrices of each in it."""
    source = found.foldings["original"].source
    model: Any = loading.load(source, dtype=found.dtype, device=found.device, own_head=found.live.head is None).model
    slots.place(model, adapter)
    found.beside_logits = found.live.ask(model)
    found.beside = found.live.apart(found.beside_logits)
    slots.lift(model, adapter)
    for kind in KINDS:  # the second changes whatever the first has changed
        put(model, found.foldings[kind])
        found.apart[kind] = found.live.apart(found.live.ask(model))
    del model
    gc.collect()


@torch.no_grad()
def put(model: Any, change: Folding) -> None:
    """Let a model in memory hold what `merge.write` would write, rounded as the file rounds it."""
    for path, name, tensor in change.changes():
        layer = model.get_submodule(path)
        if path in change.parted:
            layer.weight = nn.Parameter(tensor.to(model.device, model.dtype), requires_grad=False)
        else:
            layer.get_parameter(name).copy_(tensor)


def better(apart: Mapping[Kind, Apart]) -> Kind:
    """The base that is nearer to the live adapter; of two that are equally near the original."""

    def far(kind: Kind) -> tuple[bool, float]:
        kl = apart[kind].decides.mean_kl
        return kl != kl, kl

    return min(KINDS, key=far)


def write(found: Trial, folder: Path) -> Merged:
    """Fill a folder with the merged model: weights, a task's head, and what servers read beside them."""
    written = merge.write(found.foldings[found.kind], folder)
    if found.live.head is not None:
        crown(folder, found.bare, found.live.head)
    else:
        name_stops(folder, found.stops)
    name_both(folder)
    return written
