"""`peft_type: LORA`: two matrices beside each linear layer."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.methods.adapter_file import CONFIG, WEIGHTS, AdapterFile, made_for_another, some
from tunesmith.methods.lora import LoRA, scale_of
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import is_linear, is_transposed, shape_of

_PREFIX = "base_model.model."
# Settings of a peft file that change what an adapter computes and are not read here: every value but these is refused.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
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


def reads(config: dict[str, Any]) -> bool:
    return config.get("peft_type", "LORA" if "lora_alpha" in config or "target_modules" in config else "") == "LORA"


def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors)."""
    modules: dict[str, Any] = tuning.adapter
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
        "use_dora": False,
        "modules_to_save": None,
        "rank_pattern": {path: m.A.shape[0] for path, m in modules.items() if m.A.shape[0] != rank},
        "alpha_pattern": {path: _tidy(m.scale * m.A.shape[0]) for path, m in modules.items() if (m.A.shape[0], m.scale) != (rank, scale)},
    }
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = module.A
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = module.B
    return config, tensors


def targets(model: nn.Module, paths: list[str]) -> list[str]:
    """The shortest `target_modules` that name exactly these layers: last names, or whole paths where those say too much."""
    chosen, names = set(paths), sorted({path.rpartition(".")[2] for path in paths})
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in names}
    return names if named == chosen else sorted(paths)


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> AdapterFile:
    """`tensors` are "path.A" [rank, in] and "path.B" [out, rank]; `facts` the scales by path, and dropout. Raises UserError."""
    problems = [f"{folder / CONFIG}: {sentence}" for sentence in _unserved(config)]
    tensors: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])(?:\.default)?\.weight", key)
        if match is None or tensor.ndim != 2:
            problems.append(f"{folder / WEIGHTS}: tensor {key} {tuple(tensor.shape)} is not part of a plain LoRA")
        else:
            tensors[".".join(match.groups())] = tensor.float()
    scales = {}
    for path in dict.fromkeys(name[:-2] for name in tensors):
        a, b = tensors.get(f"{path}.A"), tensors.get(f"{path}.B")
        if a is None or b is None:
            problems.append(f"{folder / WEIGHTS}: {path} has no lora_{'A' if a is None else 'B'}")
        elif a.shape[0] != b.shape[1]:
            problems.append(f"{folder / WEIGHTS}: {path} has rank {a.shape[0]} in lora_A and {b.shape[1]} in lora_B")
        else:
            alpha = _pattern(config.get("alpha_pattern") or {}, path, config.get("lora_alpha", 8))  # 8 is peft's default
            scales[path] = scale_of(alpha, a.shape[0], bool(config.get("use_rslora")))
    if not tensors and not problems:
        problems.append(f"{folder / WEIGHTS}: holds no tensors")
    if problems:
        raise UserError(*some(problems))
    facts = {"scales": scales, "dropout": float(config.get("lora_dropout") or 0.0)}
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
    problems, adapter = [], {}
    for path, scale in file.facts["scales"].items():
        a, b = file.tensors[f"{path}.A"], file.tensors[f"{path}.B"]
        if path not in layers:
            problems.append(f"{path}: no such layer in the model")
        elif not is_linear(layers[path]):
            problems.append(f"{path}: {type(layers[path]).__name__} is no linear layer")
        elif (a.shape[1], b.shape[0]) != shape_of(layers[path]):
            problems.append(f"{path}: made for {(a.shape[1], b.shape[0])}, the layer is {shape_of(layers[path])} (in, out)")
        else:
            module = LoRA(a.shape[1], b.shape[0], a.shape[0], scale, file.facts["dropout"], device)
            with torch.no_grad():
                module.A.copy_(a)
                module.B.copy_(b)
            adapter[path] = module
    if problems:
        raise made_for_another(file, problems)
    ordered: dict[str, nn.Module] = {path: adapter[path] for path in layers if path in adapter}
    return Tuning(ordered, dict(slots.indexed(ordered)))


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """Rank, alpha and targets are the file's."""
    scales = file.facts["scales"]
    first = next(iter(scales))
    rank = file.tensors[f"{first}.A"].shape[0]
    chosen = targets(model, list(scales))
    return {"name": "lora", "rank": rank, "alpha": scales[first] * rank, "targets": chosen, "rslora": False}  # alpha holds the scale


def _pattern(pattern: dict[str, float], path: str, default: float) -> float:
    """peft's rule: a key is a regular expression that a path ends with."""
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", path):
            return float(value)
    return float(default)


def _tidy(value: float) -> float | int:
    return int(value) if math.isfinite(value) and value == int(value) else value
