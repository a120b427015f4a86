"""A task's head in a checkpoint that is written already, in place of the language model's own."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.export.folder import right_index
from tunesmith.methods.layouts.adapter_file import ABOUT
from tunesmith.models import score
from tunesmith.models.matrix import INDEX, tensor_files
from tunesmith.models.score import Score


def crown(folder: Path, model: Any, head: Score) -> None:
    """Put a task's head into a written checkpoint; the language model's own goes, where it is nobody else's.

    `model` may be a skeleton: its config and the names of its tensors are asked for. Peak memory is one file.
    """
    more, gone = with_head(folder, model, head), score.replaced(model)
    files = tensor_files(folder)
    last = list(files.values())[-1]
    for file in {files[name] for name in gone if name in files} | {last}:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata()
        tensors = {name: tensor for name, tensor in load_file(file).items() if name not in gone}
        aside = file.with_suffix(".new")  # what is read may still be mapped
        save_file(tensors | (more if file == last else {}), aside, metadata=metadata or {"format": "pt"})
        os.replace(aside, file)
    if (folder / INDEX).is_file():
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        kept = {name: file for name, file in content["weight_map"].items() if name not in gone}
        content["weight_map"] = kept | dict.fromkeys(more, last.name)
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        right_index(folder)


def with_head(folder: Path, model: Any, head: Score) -> dict[str, Tensor]:
    """The head's tensors by the names that the class of `transformers` gives them; config.json and our own note are written."""
    found = score.counterpart(model.config, head.task)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for file, content in (("config.json", score.config_of(config, head, found)), (ABOUT, {"head": head.about})):
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    name = found.head if found else score.NAMES[0]
    return {key.replace("score", name, 1): tensor.detach().cpu() for key, tensor in head.tensors.items()}
