"""`peft_type: PREFIX_TUNING`: one table `prompt_embeddings` [P, layers·2·K·E], whatever encoder made it.

For each position: layer 0's keys (K heads of E), layer 0's values, layer 1's keys ... What `peft` calls `token_dim` is K·E there
and its `num_attention_heads` is K; it cannot say that layers differ, so that only a file of equal layers can be opened by it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.methods import prefix
from tunesmith.methods.layouts.adapter_file import CONFIG, WEIGHTS, AdapterFile, made_for_another
from tunesmith.methods.parts import in_front
from tunesmith.methods.tuning import Tuning
from tunesmith.models.attention_layers import attention_layers

TABLE = "prompt_embeddings"


def reads(config: dict[str, Any]) -> bool:
    return config.get("peft_type") == "PREFIX_TUNING"


def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors). The encoder is left out: what it makes is what is kept."""
    modules: list[Any] = list(tuning.adapter.values())
    with torch.no_grad():
        table = torch.cat([module.flat() for module in modules], dim=1)
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": tuning.prefix_tokens,
        "num_layers": len(modules),
        "token_dim": modules[0].heads * modules[0].size,
        "num_attention_heads": modules[0].heads,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": None,
        "inference_mode": True,
    }
    return config, {TABLE: table}


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> AdapterFile:
    """Also what was trained there with `prefix_projection`: a saved folder holds the table that the encoder made. Raises UserError."""
    table = weights.get(TABLE)
    problems = [f"{folder / WEIGHTS}: tensor {key} {tuple(w.shape)} is not part of a prefix" for key, w in weights.items() if key != TABLE]
    if table is None or table.ndim != 2 or not table.numel():
        problems.append(f"{folder / WEIGHTS}: no table {TABLE} [positions, layers·2·heads·size]")
    elif table.shape[0] != config.get("num_virtual_tokens", table.shape[0]):
        problems.append(f"{folder / CONFIG}: num_virtual_tokens={config['num_virtual_tokens']}, but the table has {table.shape[0]} rows")
    if config.get("num_transformer_submodules") not in (None, 1):
        problems.append(
            f"{folder / CONFIG}: num_transformer_submodules={config['num_transformer_submodules']} is not served, only decoders are"
        )
    if problems or table is None:
        raise UserError(*problems)
    facts = {"layers": config.get("num_layers"), "heads": config.get("num_attention_heads"), "width": config.get("token_dim")}
    return AdapterFile(folder, config.get("base_model_name_or_path") or "", "prefix", {TABLE: table.float()}, facts)


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """One module a layer, without encoder. Raises UserError where layers, heads or sizes are others."""
    table = file.tensors[TABLE]
    try:
        layers = attention_layers(model)
        in_front.check_room(model, len(table))
    except LookupError as error:
        raise made_for_another(file, [error.args[0]]) from None
    problems = []
    if len({(each.heads, each.size) for each in layers}) == 1:  # what the config says holds for all layers
        here = {"layers": len(layers), "heads": layers[0].heads, "width": layers[0].heads * layers[0].size}
        said = {"layers": "layers", "heads": "key/value heads", "width": "channels of keys"}
        problems = [f"{file.facts[key]} {said[key]}, the model has {n}" for key, n in here.items() if file.facts[key] not in (None, n)]
    widths = [2 * each.heads * each.size for each in layers]
    if not problems and table.shape[1] != sum(widths):
        problems.append(f"{table.shape[1]} values for each position, the model keeps {sum(widths)}")
    if problems:
        raise made_for_another(file, problems)
    adapter: dict[str, nn.Module] = {}
    for layer, values in zip(layers, table.split(widths, dim=1), strict=True):
        module = prefix.Prefix(layer.index, table.shape[0], layer.heads, layer.size, device=device)
        with torch.no_grad():
            module.table.copy_(values)
        adapter[layer.path] = module
    return prefix.assembled(adapter, table.shape[0])


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """Its length; going on from a folder trains the table, since the encoder is not in it."""
    name = file.about.get("method")
    return {"name": name if name == "ptuning_v2" else "prefix", "tokens": file.tensors[TABLE].shape[0], "encoder": "none"}
