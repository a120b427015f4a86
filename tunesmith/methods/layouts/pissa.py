"""Updates that begin from a part of the base (PiSSA, LoftQ), laid out as a plain LoRA of rank 2r over the original base.

    A' = [A; A-A0] [2r, in]        B' = [B-B0, B0] [out, 2r]        B'·A' = B·A - B0·A0

`peft` converts to [A; A0] and [B, -B0], the same product; but there two large terms have to cancel, and a server that rounds the
file to bf16 rounds each of them. Here both are as small as what was learned, and are rounded by as much less.

`tunesmith.json` says that the halves are these, so that the folder is opened as what was trained: over NF4 on the residual's codes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.methods import pissa
from tunesmith.methods.layouts import lora
from tunesmith.methods.layouts.adapter_file import ABOUT, AdapterFile
from tunesmith.methods.pissa import PiSSA
from tunesmith.methods.tuning import Tuning
from tunesmith.models import slots


def reads(config: dict[str, Any]) -> bool:
    """Never by its config, which is a plain LoRA's: `tunesmith.json` says that the halves mean something."""
    return False


def write(model: Any, tuning: Tuning, base: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) of the LoRA of rank 2r; what the halves are, and over NF4 the difference from what was trained, is noted in
    `tuning.about`."""
    modules = pissa.updates(tuning.adapter)
    differences = [module.differences for module in modules.values() if module.differences]
    tuning.about["layout"] = "pissa"
    tuning.about["pissa"] = {
        "begins_with": tuning.about.get("pissa", {}).get("begins_with", "principal"),
        "rank": max(module.A.shape[0] for module in modules.values()),
        "quantised": bool(differences),
        "weight_difference": {over: sum(d[over] for d in differences) / len(differences) for over in (differences or [{}])[0]},
    }
    served: dict[str, nn.Module] = {path: modules[path].as_lora() if path in modules else m for path, m in tuning.adapter.items()}
    return lora.write(model, Tuning(served, tuning.parameters), base)


def read(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> AdapterFile:
    """The plain LoRA of rank 2r that the folder is. Raises UserError as `layouts/lora.py` does."""
    return lora.read(folder, config, tensors)


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """The trained halves and the first ones, ready to be settled. Raises UserError with every layer that does not fit."""
    tuning: Tuning = lora.fit(file, model, device)
    plain: dict[str, Any] = {path: module for path, module in tuning.adapter.items() if hasattr(module, "A")}
    if odd := [path for path, module in plain.items() if module.A.shape[0] % 2]:
        raise UserError(f"{file.folder / ABOUT}: says that the ranks are doubled, but {odd[0]} has an odd one; leave that file out")
    adapter = {path: _halves(module) if path in plain else module for path, module in tuning.adapter.items()}
    return Tuning(adapter, dict(slots.indexed(adapter)), tuning.learning_rate_ratios, tuning.notes, pissa.fixed(adapter), "pissa")


@torch.no_grad()
def _halves(plain: Any) -> PiSSA:
    """What `as_lora` was made of. B0 and A are there to the bit, A0 and B to the rounding of a difference."""
    rank, inner = plain.A.shape[0] // 2, plain.A.shape[1]
    module = PiSSA(inner, plain.B.shape[0], rank, plain.scale, plain.dropout, plain.A.device)
    module.start_from(plain.B[:, rank:], plain.A[:rank] - plain.A[rank:])
    module.A.copy_(plain.A[:rank])
    module.B.copy_(plain.B[:, :rank] + plain.B[:, rank:])
    return module


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """Those of the run that wrote it: rank r, not the 2r of the file."""
    found, said = lora.settings(file, model), file.about["pissa"]
    loftq: dict[str, Any] = {"init": "loftq"} if said["begins_with"] == "rounding" else {}
    name = "lora" if loftq else "pissa"
    return found | loftq | {"name": name, "rank": found["rank"] // 2, "alpha": found["alpha"] / 2}
