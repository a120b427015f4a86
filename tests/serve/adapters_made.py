"""Adapter folders without a meaning, and an engine that remembers what it was told: for tests of loading and managing."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunesmith.errors import UserError


class Told:
    """Remembers what it was told."""

    name = "fake"

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def load(self, name: str, folder: Any) -> None:
        if "broken" in str(folder):
            raise UserError(f"{folder}: made for another base model", "choose the right one")
        self.told.append(("load", name, str(folder)))

    def unload(self, name: str) -> None:
        self.told.append(("unload", name))


def adapter(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.full((2,), float(seed))}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    return folder
