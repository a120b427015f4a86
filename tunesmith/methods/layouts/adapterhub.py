"""Bottleneck adapters as AdapterHub's `adapters` library saves them with `use_safetensors=True`.

Its config holds the library's own under "config", and no `peft_type`. A block's tensors are
`BLOCK.output_adapters.adapters.NAME.adapter_down.0.weight` and so on, `attention_adapters` for those behind attention.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tunesmith
from tunesmith.errors import UserError
from tunesmith.methods.adapter import ACTIVATIONS, ELSEWHERE_OTHERWISE, Bottleneck, places, width_of
from tunesmith.methods.layouts.adapter_file import CONFIG, AdapterFile, made_for_another, some
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots, sublayers

WEIGHTS = "adapter.safetensors"
_NAME = "tunesmith"
# What their library would compute otherwise must not load there: this architecture it does not know.
_OURS = "tunesmith"
_TENSORS = {"down": "adapter_down.0.weight", "down_bias": "adapter_down.0.bias", "up": "adapter_up.weight", "up_bias": "adapter_up.bias"}
_PLACES = ("attention_adapters", "output_adapters")
_KEY = re.compile(rf"(.+)\.({'|'.join(_PLACES)})\.adapters\.[^.]+\.({'|'.join(map(re.escape, _TENSORS.values()))})")
# variant -> what of their config says so
_VARIANTS: dict[str, dict[str, Any]] = {
    "houlsby": {"is_parallel": False, "original_ln_before": False},
    "pfeiffer": {"is_parallel": False, "original_ln_before": True, "mh_adapter": False},
    "parallel": {"is_parallel": True, "mh_adapter": False},
}
# Settings that change what an adapter computes and are not read here: every value but these is refused.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "architecture": (None, _OURS),
    "original_ln_after": (True,),
    "residual_before_ln": (True,),
    "ln_before": (False,),
    "ln_after": (False,),
    "use_gating": (False,),
    "inv_adapter": (None,),
    "phm_layer": (False,),
    "stochastic_depth": (0.0, None),
}
_TO_THEIRS = {"silu": "swish"}
_FROM_THEIRS = {"swish": "silu", **{name: name for name in ACTIVATIONS}}
_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # what the names meant in files that tell no version


def reads(config: dict[str, Any]) -> bool:
    inner = config.get("config")
    return "peft_type" not in config and isinstance(inner, dict) and "reduction_factor" in inner and "non_linearity" in inner


@dataclass(frozen=True, slots=True)
class _Stand:
    """Where a module stands, in our words and in theirs."""

    path: str
    reads: str
    adds: str
    block: str
    place: str


def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors)."""
    modules: dict[str, Any] = tuning.adapter
    variant, stands = _stands_of(model, modules)
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        for ours, theirs in _TENSORS.items():
            tensors[f"{stands[path].block}.{stands[path].place}.adapters.{_NAME}.{theirs}"] = getattr(module, ours)
    content = {
        "config": _config(model, variant, modules, [stands[path] for path in modules]),
        "hidden_size": next(iter(modules.values())).down.shape[1],
        "model_class": type(model).__name__,
        "model_name": base,
        "model_type": model.config.model_type,
        "name": _NAME,
        "version": f"tunesmith.{tunesmith.__version__}",  # without any, theirs takes the activation's name for one of its first years
    }
    return content, tensors


def _stands(model: Any, variant: str) -> list[_Stand]:
    found = []
    for block in sublayers.find(model):
        chosen = places(block, variant)
        found += [_Stand(*where, block.block, name) for where, name in zip(chosen, _PLACES[-len(chosen) :], strict=True)]
    return found


def _stands_of(model: Any, modules: dict[str, Any]) -> tuple[str, dict[str, _Stand]]:
    """The variant, and where each module stands."""
    for variant in _VARIANTS:
        stands = {stand.path: stand for stand in _stands(model, variant)}
        if all(path in stands and module.reads == stands[path].reads for path, module in modules.items()):
            return variant, stands
    raise AssertionError("modules of several variants")


def _config(model: Any, variant: str, modules: dict[str, Any], stands: list[_Stand]) -> dict[str, Any]:
    """What their library builds the same modules from."""
    first = next(iter(modules.values()))
    blocks, tuned = [block for block, _ in slots.blocks(model)], {stand.place for stand in stands}
    widths = {stand.block: modules[stand.path].down.shape[0] for stand in stands}
    foreign = {"architecture": _OURS} if (sublayers.kind(model), variant) in ELSEWHERE_OTHERWISE else {}
    return foreign | {
        "mh_adapter": "attention_adapters" in tuned,
        "output_adapter": "output_adapters" in tuned,
        "reduction_factor": _reduction(first.down.shape[1], [widths.get(block, first.down.shape[0]) for block in blocks]),
        "leave_out": [number for number, block in enumerate(blocks) if block not in widths],
        "non_linearity": _TO_THEIRS.get(first.activation, first.activation),
        "scaling": float(first.scale),  # theirs takes a whole number for a mistake
        "dropout": first.dropout,
        "is_parallel": variant == "parallel",
        "original_ln_before": variant == "pfeiffer",
        "original_ln_after": True,
        "residual_before_ln": True,
        "adapter_residual_before_ln": False,
        "ln_before": False,
        "ln_after": False,
        "use_gating": False,
        "inv_adapter": None,
        "phm_layer": False,
        "init_weights": "mam_adapter",
    }


def _reduction(channels: int, widths: list[int]) -> float | dict[str, float]:
    """`reduction_factor` by which their library comes to these widths: one, or one a block where they differ."""
    factors = [_factor(channels, width) for width in widths]
    return factors[0] if len(set(factors)) == 1 else {str(number): factor for number, factor in enumerate(factors)}


def _factor(channels: int, width: int) -> float:
    factor = channels / width
    while width_of(channels, factor) < width:  # 100 // (100 / 3) is 2
        factor = math.nextafter(factor, 0.0)
    return factor


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> AdapterFile:
    """`tensors` are "BLOCK|place.down" and so on; `facts` the variant, activation, scale and dropout. Raises UserError."""
    theirs = config["config"]
    if "version" not in config:
        theirs = theirs | {"non_linearity": _BEFORE_VERSIONS.get(theirs["non_linearity"], theirs["non_linearity"])}
    problems = [f"{folder / CONFIG}: {sentence}" for sentence in _unserved(theirs)]
    tensors: dict[str, Tensor] = {}
    names = {theirs: ours for ours, theirs in _TENSORS.items()}
    for key, tensor in weights.items():
        if match := _KEY.fullmatch(key):
            tensors[f"{match[1]}|{match[2]}.{names[match[3]]}"] = tensor.float()
        else:
            problems.append(f"{folder / WEIGHTS}: tensor {key} {tuple(tensor.shape)} is not part of a bottleneck adapter")
    for place in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        problems += [f"{folder / WEIGHTS}: {place.replace('|', '.')}: {sentence}" for sentence in _misshapen(place, tensors)]
    if not tensors and not problems:
        problems.append(f"{folder / WEIGHTS}: holds no tensors")
    if problems:
        raise UserError(*some(problems))
    facts = {
        "variant": _variant(theirs),
        "activation": _FROM_THEIRS[theirs["non_linearity"].lower()],
        "scale": float(theirs.get("scaling", 1.0)),
        "dropout": float(theirs.get("dropout") or 0.0),
        "ours": str(config.get("version", "")).startswith("tunesmith."),
    }
    return AdapterFile(folder, config.get("model_name") or "", "adapterhub", tensors, facts)


def _variant(theirs: dict[str, Any]) -> str | None:
    plain = {"is_parallel": False, "original_ln_before": False, "mh_adapter": False} | theirs
    return next((name for name, said in _VARIANTS.items() if all(plain[key] == value for key, value in said.items())), None)


def _unserved(theirs: dict[str, Any]) -> list[str]:
    """Settings that change what the tensors mean, in a way that is not served."""
    found = [f"{key}={theirs[key]!r} is not served" for key, plain in _PLAIN.items() if key in theirs and theirs[key] not in plain]
    if not isinstance(theirs.get("scaling", 1.0), int | float):
        found.append(f"scaling={theirs['scaling']!r} is not served: a number is")
    if str(theirs["non_linearity"]).lower() not in _FROM_THEIRS:
        found.append(f"non_linearity={theirs['non_linearity']!r} is not served; {', '.join(_FROM_THEIRS)} are")
    if _variant(theirs) is None:
        said = " ".join(f"{key}={theirs.get(key)!r}" for key in ("mh_adapter", "output_adapter", "is_parallel", "original_ln_before"))
        found.append(f"{said} is none of {', '.join(_VARIANTS)}")
    return found


def _misshapen(place: str, tensors: dict[str, Tensor]) -> list[str]:
    """What is missing of a module, and what does not go together."""
    shapes = {name: tuple(tensors[f"{place}.{name}"].shape) for name in _TENSORS if f"{place}.{name}" in tensors}
    if missing := [theirs for ours, theirs in _TENSORS.items() if ours not in shapes]:
        return [f"no {', '.join(missing)}"]
    if len(shapes["down"]) != 2:
        return [f"{_TENSORS['down']} has the shape {shapes['down']}, a matrix is needed"]
    width, channels = shapes["down"]
    wanted = {"down_bias": (width,), "up": (channels, width), "up_bias": (channels,)}
    return [
        f"{_TENSORS[ours]} has the shape {shapes[ours]}, {shape} goes with {_TENSORS['down']}"
        for ours, shape in wanted.items()
        if shapes[ours] != shape
    ]


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """Raises UserError with every block that is missing or of another width, and for what their library computes otherwise."""
    facts = file.facts
    try:
        stands = {f"{stand.block}|{stand.place}": stand for stand in _stands(model, facts["variant"])}
    except LookupError as error:
        raise made_for_another(file, [error.args[0]]) from None
    why = ELSEWHERE_OTHERWISE.get((sublayers.kind(model), facts["variant"]))
    if why and not facts["ours"]:
        raise UserError(
            f"{file.folder}: AdapterHub's {facts['variant']} adapter for {model.config.model_type} is one of its own ({why}), which is not "
            f"served; method.name=adapter method.variant={facts['variant']} trains one of the published definition"
        )
    channels = model.config.get_text_config().hidden_size
    problems, adapter = [], {}
    for place in dict.fromkeys(name.rpartition(".")[0] for name in file.tensors):
        shown = place.replace("|", ".")
        width, wanted = file.tensors[f"{place}.down"].shape
        if place not in stands:
            problems.append(f"{shown}: no such place in the model")
        elif wanted != channels:
            problems.append(f"{shown}: made for {wanted} channels, the model has {channels}")
        else:
            stand = stands[place]
            module = Bottleneck(channels, width, facts["activation"], facts["scale"], facts["dropout"], stand.reads, stand.adds, device)
            with torch.no_grad():
                for ours in _TENSORS:
                    getattr(module, ours).copy_(file.tensors[f"{place}.{ours}"])
            adapter[stand.path] = module
    if problems:
        raise made_for_another(file, problems)
    ordered: dict[str, nn.Module] = {path: adapter[path] for path, _ in model.named_modules() if path in adapter}
    return Tuning(ordered, dict(slots.indexed(ordered)), layout="adapterhub")


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """Variant, width, activation and scale are the file's."""
    width = next(tensor.shape[0] for name, tensor in file.tensors.items() if name.endswith(".down"))
    facts = file.facts
    return {"name": "adapter", "variant": facts["variant"], "width": width, "activation": facts["activation"], "scale": facts["scale"]}
