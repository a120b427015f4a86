"""A LoRA as a GGUF file of its own, which llama.cpp puts beside a base model's file (`--lora FILE`).

llama.cpp adds scale · alpha / rank · B·A, A [rank, in] and B [out, rank], beside the matrix of the same name. B's rows are turned where
the matrix's are. One alpha stands for the whole file; an update whose scale is another one's carries the rest in its B.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tunesmith.errors import UserError
from tunesmith.export.gguf.model_file import Tell, Written, begin, opened_aside
from tunesmith.export.gguf.names import family_of, name_of
from tunesmith.export.gguf.weights import changes
from tunesmith.methods.layouts import layout
from tunesmith.methods.tuning import Tuning
from tunesmith.models import load as loading

SERVE = "serve it with `tunesmith serve`"
WHOLE_INSTEAD = "write the whole model instead: `tunesmith export DIR --to gguf` without --adapter-only"


@torch.no_grad()
def write_lora(adapter: Path, base: Path, out: Path, tell: Tell = lambda sentence: None) -> Written:
    """Write the adapter folder `adapter`, made for the model in `base`, as the file `out`; fp32, as it was trained.

    PiSSA goes as the LoRA of twice the rank that it is over the original weights. Raises UserError, with what can be done, for DoRA,
    for whatever is trained beside the updates, and for methods that llama.cpp does not have.
    """
    config = loading.load_config(base)
    family = family_of(config)
    model = loading.skeleton(config)
    tuning = layout.fit(layout.read(adapter), model, device="cpu")
    updates = loras(tuning, str(adapter))
    names = {path: name_of(f"{path}.weight", family)[0] for path in updates}
    if config.tie_word_embeddings:
        names = {path: name for path, name in names.items() if name != "output.weight"}
    if lost := [path for path in updates if not names.get(path)]:
        raise UserError(
            *[f"{adapter}: llama.cpp has no matrix of its own for the update at {path}" for path in lost[:20]],
            WHOLE_INSTEAD,
        )
    change = changes(config, family)
    first = next(iter(updates.values()))
    alpha = float(first.scale * first.A.shape[0])
    tensors: dict[str, np.ndarray] = {}
    for path, module in updates.items():
        rest = module.scale * module.A.shape[0] / alpha
        tensors[f"{names[path]}.lora_a"] = module.A.float().contiguous().numpy()
        tensors[f"{names[path]}.lora_b"] = change(names[path], module.B.float() * rest).contiguous().numpy()
    tell(f"{len(updates)} updates as GGUF")
    with opened_aside(out, family.architecture) as writer:
        writer.add_type("adapter")
        writer.add_name(adapter.resolve().name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, values in tensors.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        begin(writer)
        for values in tensors.values():
            writer.write_tensor_data(values)
    return Written(out, family.architecture, "f32", len(tensors), out.stat().st_size, {"F32": len(tensors)})


def loras(tuning: Tuning, where: str) -> dict[str, Any]:
    """The updates by path, each with A, B and scale. Raises UserError for an adapter that is more, or something else."""
    if tuning.head is not None:
        raise UserError(f"{where}: it predicts labels with a head of its own, which llama.cpp does not have; {SERVE}")
    adapter: dict[str, Any] = tuning.adapter
    modules: dict[str, Any] = {path: m.as_lora() if hasattr(m, "as_lora") else m for path, m in adapter.items()}
    plain = {path: module for path, module in modules.items() if hasattr(module, "A") and not hasattr(module, "magnitude")}
    if not plain and not any(hasattr(module, "folded") for module in modules.values()):
        raise UserError(
            f"{where}: llama.cpp takes LoRA adapters alone, and this is {tuning.layout}; {SERVE}, or export a LoRA fitted to it: --as lora"
        )
    beside = [path for path in modules if path not in plain]
    if beside:
        kinds = sorted({type(modules[path]).__name__ for path in beside})
        raise UserError(
            f"{where}: {', '.join(kinds)} at {', '.join(beside[:5])} cannot be in a LoRA file of llama.cpp's ({len(beside)} of them)",
            WHOLE_INSTEAD,
        )
    return plain
