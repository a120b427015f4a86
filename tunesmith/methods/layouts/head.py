"""A task's head in an adapter folder, whatever the adapter beside it is: as `peft` keeps a module that is trained whole.

    adapter_config.json   task_type SEQ_CLS (classify) or TOKEN_CLS (tag), modules_to_save ["score"]
    tensors               base_model.model.score.weight [L, C]     (base_model.score.weight beside virtual tokens and prefixes)
    tunesmith.json        head: the task, and the labels in the order of the rows

So `peft` opens it over `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` of the base. A layout that is
not of `peft` has a file of its own for the head, which only we read.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods.layouts.adapter_file import ABOUT, tensors_of
from tunesmith.methods.parts import extras
from tunesmith.methods.tuning import Tuning
from tunesmith.models.score import NAMES, Score, counterpart, fitted

TASK_TYPES = {"classify": "SEQ_CLS", "tag": "TOKEN_CLS"}
OWN = "score.safetensors"
_PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")  # peft holds their base model without a wrapper of its own
_KEY = re.compile(rf"base_model\.(?:model\.)?({'|'.join(NAMES)})\.(?:modules_to_save\.)?(?:default\.)?(weight|bias)")


def add(model: Any, head: Score, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the head into a config and its tensors; returned are the tensors of the file that only we read, where it takes one."""
    if "peft_type" not in config:
        return dict(head.tensors)
    found = counterpart(model.config, head.task)
    name = found.head if found else NAMES[0]
    prefix = "base_model" if config["peft_type"] in _PROMPTS else "base_model.model"
    config["task_type"] = TASK_TYPES[head.task]
    config["modules_to_save"] = [*(config.get("modules_to_save") or []), name]
    tensors.update({f"{prefix}.{key.replace('score', name, 1)}": tensor for key, tensor in head.tensors.items()})
    return {}


def take(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """(config, tensors, head): the adapter as it would be without its head, and {"task", "tensors"} of the head where there is one."""
    task = next((task for task, name in TASK_TYPES.items() if name == config.get("task_type")), None)
    matches = {key: match for key in tensors if (match := _KEY.fullmatch(key))}
    if task is None or not matches:
        return config, tensors, None
    left = [name for name in config.get("modules_to_save") or [] if name not in NAMES]
    plain = config | {"task_type": "CAUSAL_LM"} | ({"modules_to_save": left or None} if "modules_to_save" in config else {})
    head = {"task": task, "tensors": {match[2]: tensors[key] for key, match in matches.items()}}
    return plain, {key: tensor for key, tensor in tensors.items() if key not in matches}, head


def own(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The head in the file that only we read. Raises UserError."""
    task = (about.get("head") or {}).get("task")
    if task not in TASK_TYPES:
        raise UserError(f"{folder}: {OWN} is a task's head, but {ABOUT} beside it does not say which task's")
    return {"task": task, "tensors": {name.removeprefix("score."): tensor for name, tensor in tensors_of(folder, OWN).items()}}


def fit(head: dict[str, Any], tuning: Tuning, model: Any, folder: Path, device: Any = None) -> None:
    """Give a tuning the head that its folder holds. Labels without names are those of the base's config. Raises UserError."""
    said = {"labels": list((model.config.id2label or {}).values())} | (tuning.about.get("head") or {}) | {"task": head["task"]}
    score = fitted(said, head["tensors"], str(folder), device)
    tuning.adapter, tuning.head = extras.without_head(tuning.adapter, model), score
    tuning.parameters |= score.tensors


def note(model: Any, head: Score) -> str:
    """What to say where nobody else opens what is saved, or nothing."""
    if counterpart(model.config, head.task) is not None:
        return ""
    kind = "ForSequenceClassification" if head.task == "classify" else "ForTokenClassification"
    return f"transformers has no {kind} for {model.config.model_type}: what this run saves with its head is read by tunesmith alone"
