"""What a folder of `peft` holds beside low-rank updates: trained rows of embedding and head (`trainable_token_indices`), whole
modules (`modules_to_save`). The part that layouts of LoRA's kin share; a layout's `read` hands over what it does not know itself.

    base_model.model.PATH.token_adapter.trainable_tokens_delta     rows [n, C] for the n indices of the config (values, not differences)
    base_model.model.PATH.NAME                                     a tensor of a module that is saved whole
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods.parts import extras

PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"


def write(model: Any, modules: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what the config says of them, tensors). `modules` are those that are no low-rank update."""
    rows = {path: module.ids for path, module in modules.items() if hasattr(module, "values")}
    copies = [path for path, module in modules.items() if hasattr(module, "attach") and not hasattr(module, "follows")]
    followers = {path: module.follows for path, module in modules.items() if hasattr(module, "follows")}
    config: dict[str, Any] = {}
    if rows:  # a list is for the embedding; whoever reads it takes a tied head along
        config["trainable_token_indices"] = rows[extras.ends(model)[0]] if list(rows) == [extras.ends(model)[0]] else rows
    if copies:
        config["modules_to_save"] = _endings(model, copies)
    if any(path in copies for path in followers.values()):
        config["ensure_weight_tying"] = True
    tensors = {f"{PREFIX}{path}{_ROWS}": modules[path].values for path in rows}
    for path in copies:
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in modules[path].named_parameters()}
        for head, source in followers.items():
            if source == path:  # peft wants both; safetensors takes no tensor twice
                tensors[f"{PREFIX}{head}.weight"] = modules[path].weight.detach().clone()
    return config, tensors


def _endings(model: nn.Module, paths: list[str]) -> list[str]:
    """Names for `modules_to_save`, of which peft takes every module whose path ends with the letters of one."""
    every = [path for path, _ in model.named_modules()]
    names = sorted({path.rpartition(".")[2] for path in paths})
    return names if {path for path in every if path.endswith(tuple(names))} == set(paths) else sorted(paths)


def read(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any], set[str], list[str]]:
    """(tensors by "path.values" and "path.NAME", facts for `fit`, keys that are read here, what is wrong)."""
    indices, saved = config.get("trainable_token_indices") or {}, tuple(config.get("modules_to_save") or ())
    tensors: dict[str, Tensor] = {}
    tokens: dict[str, list[int]] = {}
    copies: dict[str, list[str]] = {}
    keys, problems = set(), []
    for key, tensor in weights.items():
        inner = key.removeprefix(PREFIX)
        if inner == key:
            continue
        if indices and inner.endswith(_ROWS):
            path = inner.removesuffix(_ROWS)
            ids = next((ids for name, ids in indices.items() if path.endswith(name)), None) if isinstance(indices, dict) else indices
            if ids is None or tensor.ndim != 2 or len(ids) != tensor.shape[0]:
                problems.append(f"tensor {key} {tuple(tensor.shape)} does not fit trainable_token_indices={indices}")
            else:
                tokens[path], tensors[f"{path}.values"] = [int(each) for each in ids], tensor.float()
            keys.add(key)
        elif saved and ".lora_" not in inner and _is_saved(inner, saved):
            path, _, name = inner.rpartition(".")
            copies.setdefault(path, []).append(name)
            tensors[inner] = tensor
            keys.add(key)
    if config.get("ensure_weight_tying"):  # the other end of a tied model is in the file although no setting names it
        ends = [tensors[f"{path}.weight"] for path, names in copies.items() if "weight" in names]
        keys |= {key for key, tensor in weights.items() if key not in keys and any(torch.equal(tensor, end) for end in ends)}
    if indices and not tokens and not problems:
        problems.append(f"trainable_token_indices={indices}, but there are no rows for them")
    for name in saved:
        if not any(_is_saved(f"{path}.{each}", (name,)) for path, names in copies.items() for each in names):
            problems.append(f"modules_to_save names {name}, but there is no tensor of it")
    return tensors, {"tokens": tokens, "copies": copies, "tied": bool(config.get("ensure_weight_tying"))}, keys, problems


def _is_saved(inner: str, saved: tuple[str, ...]) -> bool:
    """Whether a tensor lies in a module whose path ends with one of these names."""
    parts = inner.split(".")[:-1]
    return any(".".join(parts[:count]).endswith(saved) for count in range(1, len(parts) + 1))


def fit(tensors: dict[str, Tensor], facts: dict[str, Any], model: Any, device: Any) -> tuple[dict[str, nn.Module], list[str]]:
    """(modules by path with their values, what does not fit the model)."""
    layers = dict(model.named_modules())
    embedding, head = extras.ends(model)
    adapter: dict[str, nn.Module] = {}
    problems = []
    for path, ids in facts.get("tokens", {}).items():
        values, shape = tensors[f"{path}.values"], tuple(layers[path].weight.shape) if hasattr(layers.get(path), "weight") else None
        if shape is None:
            problems.append(f"{path}: no such layer in the model")
        elif values.shape[1] != shape[-1] or max(ids) >= shape[0]:
            problems.append(f"{path}: row {max(ids)} of {values.shape[1]} channels, the layer has {shape[0]} rows of {shape[1]}")
        else:
            if path == head:
                adapter[path] = extras.ScoredRows(ids, shape[1], device=device)
            elif head in facts["tokens"]:  # other rows there than here
                adapter[path] = extras.TrainedRows(ids, shape[1], device)
            else:
                adapter |= extras.rows_at(model, path, ids, device)
            _fill(adapter[path], {"values": values})
    tied = extras.tied(model)
    for path, names in facts.get("copies", {}).items():
        if tied and facts["tied"] and path == head:
            continue  # the embedding's tensor again
        wanted = {name: tuple(t.shape) for name, t in layers[path]._parameters.items() if t is not None} if path in layers else {}
        found = {name: tuple(tensors[f"{path}.{name}"].shape) for name in names}
        if wanted != found or not wanted:
            problems.append(f"{path}: {_shapes(found)} in the file, {_shapes(wanted) or 'no such layer'} in the model")
            continue
        if tied and not facts["tied"] and path in (embedding, head):
            adapter[path] = extras.TrainedCopy(layers[path], device, split_from=embedding if path == head else head)
        else:
            adapter |= extras.copy_at(model, path, device)
        _fill(adapter[path], {name: tensors[f"{path}.{name}"] for name in names})
    return adapter, problems


def settings(facts: dict[str, Any]) -> dict[str, Any]:
    """The method's settings that say the same."""
    tokens: list[int] = next(iter(facts.get("tokens", {}).values()), [])
    return {"trainable_tokens": list(tokens), "modules_to_save": list(facts.get("copies", {}))}


@torch.no_grad()
def _fill(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        if parameter.device.type != "meta":
            parameter.copy_(values[name])


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
