"""The result of a run: `adapter/` in peft's layout, or `model/`, a folder that `transformers` opens."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from tunesmith.export.crown import with_head
from tunesmith.methods.layouts import layout
from tunesmith.methods.tuning import Tuning
from tunesmith.models import score
from tunesmith.models.fingerprint import fingerprint
from tunesmith.models.load import Base
from tunesmith.models.score import Score
from tunesmith.models.source import opened_as
from tunesmith.train.checkpoint import write_whole

KIND = {True: "adapter", False: "model"}  # by whether there is an adapter
_SHARD_BYTES = 4 * 10**9


def write(target: Path, base: Base, tuning: Tuning, setting: Any) -> None:
    """Write the folder, whole at any moment. `setting.located` names the base. Raises UserError where the disk will not take it."""
    if tuning.adapter:
        located = setting.located
        tuning.about["base"] = fingerprint(located.folder)  # an adapter over other weights computes something else
        write_whole(target, lambda aside: layout.write(aside, base.model, tuning, opened_as(located)))
    else:
        write_whole(target, lambda aside: write_model(aside, base.model, base.folder, tuning.head))


def write_model(aside: Path, model: Any, source: Path, head: Score | None = None) -> None:
    """Every weight under the names that its source checkpoint uses; config, tokenizer and templates are copied from there.

    With a task's head it is a model of that task: the head's tensors in place of the language model's own, the labels in config.json.
    """
    left_out = set() if head is None else score.replaced(model)
    tensors: dict[str, Tensor] = revert_weight_conversion(model, {n: t for n, t in _once(model).items() if n not in left_out})
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt", ".tiktoken") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, aside / path.name)
    _name_dtype(aside / "config.json", str(model.dtype).removeprefix("torch."))
    if head is not None:
        tensors |= with_head(aside, model, head)
    shards = _shards(tensors)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name].detach().cpu().contiguous() for name in names}, aside / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (aside / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _name_dtype(path: Path, dtype: str) -> None:
    """Readers load in the dtype that config.json names, and would round fp32 weights to a bf16 base's without a word."""
    config = json.loads(path.read_text(encoding="utf-8"))
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    if any(config.get(name) != dtype for name in names):
        path.write_text(json.dumps(config | dict.fromkeys(names, dtype), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _once(model: Any) -> dict[str, Tensor]:
    """The state without a tied tensor's second name."""
    seen: set[tuple[int, torch.Size]] = set()
    kept = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in seen:
            kept[name] = tensor
            seen.add(key)
    return kept


def _shards(tensors: dict[str, Tensor]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        more = tensor.numel() * tensor.element_size()
        if shards[-1] and size + more > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    return shards
