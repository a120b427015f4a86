"""Bottleneck adapters that Tunesmith writes, with the logits beside them, for AdapterHub's library to load (`make verify-adapters`).

python -m tests.oracle.our_adapters FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.oracle.make_adapters_golden import CONFIGS, EXPECTED, IDS_BT, fill, made
from tunesmith.methods import adapter, method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import Adapter

CASES: list[tuple[str, dict[str, Any]]] = [
    *[(family, {"variant": variant, "width": 5}) for family in CONFIGS for variant in ("houlsby", "pfeiffer", "parallel")],
    *[("llama", {"activation": activation}) for activation in ("gelu", "gelu_new", "silu", "tanh")],
    ("llama", {"variant": "houlsby", "scale": 2.0, "reduction": 3.0}),
]  # fmt: skip


def write(folder: Path, family: str, told: dict[str, Any]) -> None:
    """One adapter folder."""
    model = made(family)
    tuning = adapter.build(model, Adapter(**told))
    for name, parameter in tuning.parameters.items():
        fill(name, parameter)
    method.place(model, tuning)
    layout.write(folder, model, tuning, "made/up")
    with torch.no_grad():
        save_file({"logits": model(IDS_BT).logits}, folder / EXPECTED)


if __name__ == "__main__":
    for number, (family, told) in enumerate(CASES):
        write(Path(sys.argv[1]) / f"{family}-{number}", family, told)
