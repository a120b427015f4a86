"""`peft_type: PROMPT_TUNING` and `P_TUNING`: one table [P, C] that stands in front of each document. The second's encoder is not in
the folder: both are the same thing to whoever reads them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods.layouts.adapter_file import CONFIG, WEIGHTS, AdapterFile, made_for_another, some
from tunesmith.methods.prompt import VirtualTokens, assembled, place_for
from tunesmith.methods.tuning import Tuning

_TABLE = "prompt_embeddings"
_KINDS = ("PROMPT_TUNING", "P_TUNING")


def reads(config: dict[str, Any]) -> bool:
    return config.get("peft_type") in _KINDS


@torch.no_grad()
def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors)."""
    [module] = tuning.adapter.values()
    table_PC: Tensor = module.table_PC()  # type: ignore[operator]
    text = model.config.get_text_config()
    config = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,  # what follows is a finished table, whatever encoder made it
        "num_virtual_tokens": table_PC.shape[0],
        "token_dim": table_PC.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(text, "num_attention_heads", None),
        "num_layers": getattr(text, "num_hidden_layers", None),
        "modules_to_save": None,
    }
    return config | module.says, {_TABLE: table_PC}  # type: ignore[operator]


def read(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> AdapterFile:
    """`tensors` hold "table" [P, C]. Raises UserError."""
    problems = [f"{folder / CONFIG}: {sentence}" for sentence in _unserved(config)]
    problems += [
        f"{folder / WEIGHTS}: tensor {name} {tuple(tensor.shape)} is not part of virtual tokens"
        for name, tensor in weights.items()
        if name != _TABLE
    ]
    table_PC = weights.get(_TABLE)
    if table_PC is None:
        problems.append(f"{folder / WEIGHTS}: no {_TABLE}")
    elif table_PC.ndim != 2 or 0 in table_PC.shape:
        problems.append(f"{folder / WEIGHTS}: {_TABLE} is {tuple(table_PC.shape)}, not a table [virtual tokens, channels]")
    else:
        for key, size in zip(("num_virtual_tokens", "token_dim"), table_PC.shape, strict=True):
            if config.get(key) not in (None, size):
                problems.append(f"{folder / CONFIG}: {key} is {config[key]}, but {_TABLE} is {tuple(table_PC.shape)}")
    if problems or table_PC is None:
        raise UserError(*some(problems))
    return AdapterFile(folder, config.get("base_model_name_or_path") or "", "prompt", {"table": table_PC.float()}, {})


def _unserved(config: dict[str, Any]) -> list[str]:
    found = []
    if config.get("modules_to_save"):
        found.append(f"modules_to_save={config['modules_to_save']!r} is not served")
    if config.get("num_transformer_submodules") not in (None, 1):
        found.append(
            f"num_transformer_submodules={config['num_transformer_submodules']} is for a model of several parts (an encoder and a decoder)"
        )
    return found


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """Raises UserError where the model's embeddings have another width, or its positions no room."""
    table_PC = file.tensors["table"]
    try:
        path, width = place_for(model, len(table_PC))
    except LookupError as error:
        raise made_for_another(file, [error.args[0]]) from None
    if width != table_PC.shape[1]:
        raise made_for_another(file, [f"{path}: virtual tokens of {table_PC.shape[1]} channels, the embedding has {width}"])
    module = VirtualTokens(len(table_PC), width, device)
    with torch.no_grad():
        module.table.copy_(table_PC)
    return assembled(model, path, module)


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """A plain table of as many tokens, whatever made it."""
    return {"name": "prompt", "tokens": len(file.tensors["table"])}
