"""`peft_type: LORA`: two matrices beside each linear layer; with `use_dora` a length for each row too; what is trained besides."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.methods.dora import DoRA
from tunesmith.methods.layouts import extras
from tunesmith.methods.layouts.adapter_file import CONFIG, WEIGHTS, AdapterFile, made_for_another, some
from tunesmith.methods.layouts.extras import PREFIX
from tunesmith.methods.lora import LoRA, scale_of
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import is_linear, is_transposed, shape_of

# Settings of a peft file that change what an adapter computes and are not read here: every value but these is refused.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "lora_bias": (False, None),
    "bias": ("none", None),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
# Ways to begin that also change the base model's weights: without that changed base the two matrices mean something else.
_CHANGES_THE_BASE = ("pissa", "corda", "olora", "mica", "loftq", "lora_ga")
# Tensors of an update by their names there; older versions wrote the lengths without `.weight`.
_TENSOR = re.compile(re.escape(PREFIX) + r"(.+)\.(?:lora_(A|B)(?:\.default)?\.weight|(lora_magnitude_vector)(?:\.default)?(?:\.weight)?)")

# peft adds the layer's own tensors where an update stands at embedding or head: `fit` looks whether they are the model's.
_BASE = re.compile(re.escape(PREFIX) + r"(.+)\.base_layer\.(weight|bias)")


def reads(config: dict[str, Any]) -> bool:
    return config.get("peft_type", "LORA" if "lora_alpha" in config or "target_modules" in config else "") == "LORA"


def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors)."""
    modules: dict[str, Any] = {path: module for path, module in tuning.adapter.items() if hasattr(module, "A")}
    said, tensors = extras.write(model, {path: module for path, module in tuning.adapter.items() if path not in modules})
    first = next(iter(modules.values()))
    rank, dropout, scale = first.A.shape[0], first.dropout, first.scale
    transposed = {is_transposed(model.get_submodule(path)) for path in modules}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _tidy(scale * rank),  # plain alpha/r with alpha = scale·r says the same as rank-stabilised scaling
        "use_rslora": False,
        "lora_dropout": dropout,
        "target_modules": targets(model, list(modules)),
        "fan_in_fan_out": transposed == {True},
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "use_dora": hasattr(first, "magnitude"),
        "modules_to_save": None,
        "rank_pattern": {path: m.A.shape[0] for path, m in modules.items() if m.A.shape[0] != rank},
        "alpha_pattern": {path: _tidy(m.scale * m.A.shape[0]) for path, m in modules.items() if (m.A.shape[0], m.scale) != (rank, scale)},
        **said,
    }
    for path, module in modules.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = module.A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = module.B
        if hasattr(module, "magnitude"):
            tensors[f"{PREFIX}{path}.lora_magnitude_vector.weight"] = module.magnitude
    return config, tensors


def targets(model: nn.Module, paths: list[str]) -> list[str]:
    """The shortest `target_modules` that name exactly these layers: last names, or whole paths where those say too much."""
    chosen, names = set(paths), sorted({path.rpartition(".")[2] for path in paths})
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in names}
    return names if named == chosen else sorted(paths)


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> AdapterFile:
    """`tensors` are "path.A" [rank, in], "path.B" [out, rank] and, with `dora` in `facts`, "path.magnitude" [out]; `facts` also
    holds the scales by path, dropout, and what `layouts/extras.py` says of the rest. Raises UserError."""
    problems = [f"{folder / CONFIG}: {sentence}" for sentence in _unserved(config)]
    tensors, beside, known, wrong = extras.read(config, weights)
    problems += [f"{folder / WEIGHTS}: {sentence}" for sentence in wrong]
    dora, paths = bool(config.get("use_dora")), []
    for key, tensor in weights.items():
        match = _TENSOR.fullmatch(key)
        if key in known:
            continue
        if (base := _BASE.fullmatch(key)) is not None:
            tensors[f"{base[1]}.base_layer.{base[2]}"] = tensor
            continue
        if match is None or tensor.ndim != (1 if match[3] else 2) or (match[3] and not dora):
            problems.append(f"{folder / WEIGHTS}: tensor {key} {tuple(tensor.shape)} is not part of a {'DoRA' if dora else 'plain LoRA'}")
        else:
            paths.append(match[1])
            tensors[f"{match[1]}.{match[2] or 'magnitude'}"] = tensor.float()
    scales = {}
    for path in dict.fromkeys(paths):
        lacking = [name for name in ("A", "B", *(["magnitude"] if dora else [])) if f"{path}.{name}" not in tensors]
        problems += [f"{folder / WEIGHTS}: {path} has no lora_{'magnitude_vector' if name == 'magnitude' else name}" for name in lacking]
        if lacking:
            continue
        rank, other = tensors[f"{path}.A"].shape[0], tensors[f"{path}.B"].shape[1]
        if rank != other:
            problems.append(f"{folder / WEIGHTS}: {path} has rank {rank} in lora_A and {other} in lora_B")
        else:
            alpha = _pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", 8))  # 8 is peft's default
            scales[path] = scale_of(alpha, rank, bool(config.get("use_rslora")))
    if not scales and not problems:
        problems.append(f"{folder / WEIGHTS}: holds no tensors")
    if problems:
        raise UserError(*some(problems))
    facts = {"scales": scales, "dropout": float(config.get("lora_dropout") or 0.0), "dora": dora, **beside}
    return AdapterFile(folder, config.get("base_model_name_or_path") or "", "lora", tensors, facts)


def _unserved(config: dict[str, Any]) -> list[str]:
    """Settings that change what the tensors mean, in a way that is not served."""
    found = [f"{key}={config[key]!r} is not served" for key, plain in _PLAIN.items() if key in config and config[key] not in plain]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        found.append(f"init_lora_weights={start!r} changes the base model too; let peft convert it to a plain LoRA and save it again")
    return found


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """Raises UserError with every layer that is missing or of another shape."""
    layers = dict(model.named_modules())
    make: Any = DoRA if file.facts.get("dora") else LoRA
    adapter, problems = extras.fit(file.tensors, file.facts, model, device)
    for path, scale in file.facts["scales"].items():
        a, b = file.tensors[f"{path}.A"], file.tensors[f"{path}.B"]
        if path not in layers:
            problems.append(f"{path}: no such layer in the model")
        elif not is_linear(layers[path]):
            problems.append(f"{path}: {type(layers[path]).__name__} is no linear layer")
        elif (a.shape[1], b.shape[0]) != shape_of(layers[path]):
            problems.append(f"{path}: made for {(a.shape[1], b.shape[0])}, the layer is {shape_of(layers[path])} (in, out)")
        elif path in adapter:
            problems.append(f"{path}: an update stands beside what is trained whole")
        else:
            adapter[path] = make(a.shape[1], b.shape[0], a.shape[0], scale, file.facts["dropout"], device)
            with torch.no_grad():
                for name, parameter in adapter[path].named_parameters():
                    parameter.copy_(file.tensors[f"{path}.{name}"])
    problems += _changed_bases(file, layers)
    if problems:
        raise made_for_another(file, problems)
    # as `build` has it: the updates, then what is trained besides, each in the model's order
    at = {path: number for number, path in enumerate(layers)}
    ordered = {path: adapter[path] for path in sorted(adapter, key=lambda path: (path not in file.facts["scales"], at[path]))}
    return Tuning(ordered, dict(slots.indexed(ordered)))


def _changed_bases(file: AdapterFile, layers: dict[str, nn.Module]) -> list[str]:
    """The layers whose own tensors in the file are not the model's: a vocabulary that was made larger, or trained."""
    problems = []
    for name, tensor in file.tensors.items():
        path, found, last = name.rpartition(".base_layer.")
        own: Any = getattr(layers.get(path), last, None)
        if found and own is not None and own.device.type != "meta":
            there = tensor.to(own.device, own.dtype)
            if there.shape != own.shape or not torch.allclose(there, own, rtol=0.02, atol=1e-6):
                problems.append(f"{path}: the file holds a {last} {tuple(tensor.shape)} that is not this model's {tuple(own.shape)}")
    return problems


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """Rank, alpha, targets, and what is trained besides, are the file's."""
    scales = file.facts["scales"]
    first = next(iter(scales))
    rank = file.tensors[f"{first}.A"].shape[0]
    name = "dora" if file.facts.get("dora") else "lora"
    chosen = {"name": name, "rank": rank, "alpha": scales[first] * rank, "targets": targets(model, list(scales)), "rslora": False}
    return chosen | extras.settings(file.facts)  # alpha holds the scale


def _pattern(pattern: dict[str, float], path: str, default: float) -> float:
    """peft's rule: a key is a regular expression that a path ends with."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", path):
            return float(value)
    return float(default)


def _tidy(value: float) -> float | int:
    return int(value) if math.isfinite(value) and value == int(value) else value
