"""Adapter folders as `peft` (and, for bottleneck adapters, AdapterHub) reads and writes them, in fp32, with a `tunesmith.json` beside.

The shelf `layouts/` has one file a layout: `reads(config)` (whether a folder's config is of this kind), `write(model, tuning,
base)` (config, tensors), `read(folder, config, tensors)` (an `AdapterFile`), `fit(file, model, device)` (a `Tuning`) and
`settings(file, model)` (the method's settings that the file fixes, by name).
"""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods.layouts import adapterhub, head, lora, pissa, prefix, prompt
from tunesmith.methods.layouts.adapter_file import ABOUT, CONFIG, WEIGHTS, AdapterFile, about, config_of, tensors_of
from tunesmith.methods.tuning import Tuning

LAYOUTS: dict[str, ModuleType] = {
    "lora": lora,
    "pissa": pissa,
    "prompt": prompt,
    "prefix": prefix,
    "adapterhub": adapterhub,
}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter's config, of whatever kind."""
    return (folder / CONFIG).is_file()


def write(folder: Path, model: Any, tuning: Tuning, base: str) -> None:
    """Write the adapter folder. `base` is what stands as `base_model_name_or_path`: a folder or hub id that `transformers` opens."""
    layout = LAYOUTS[tuning.layout]
    config, tensors = layout.write(model, tuning, base)
    folder.mkdir(parents=True, exist_ok=True)
    files, said = {getattr(layout, "WEIGHTS", WEIGHTS): tensors}, dict(tuning.about)
    if tuning.head is not None:
        files[head.OWN] = head.add(model, tuning.head, config, tensors)
        said["head"] = tuning.head.about
    for name, content in files.items():
        if content:
            _save(content, folder / name)
    _write_json(folder / CONFIG, config)
    if said:
        _write_json(folder / ABOUT, said)


def read(folder: Path) -> AdapterFile:
    """Raises UserError with every setting and tensor that is not served."""
    config = config_of(folder)
    found = next((name for name, layout in LAYOUTS.items() if layout.reads(config)), None)
    if found is None:
        raise UserError(f"{folder / CONFIG}: peft_type={config.get('peft_type')!r} is not served; adapters of {', '.join(LAYOUTS)} are")
    layout = LAYOUTS[found]
    config, tensors, task_head = head.take(config, tensors_of(folder, getattr(layout, "WEIGHTS", WEIGHTS)))
    file: AdapterFile = layout.read(folder, config, tensors)
    file.about.update(about(folder))
    if task_head is None and (folder / head.OWN).is_file():
        task_head = head.own(folder, file.about)
    if task_head is not None:
        file.facts["head"] = task_head
    refined = file.about.get("layout")  # what `peft` reads as a plain LoRA may mean more to us
    return replace(file, layout=refined) if refined in LAYOUTS else file


def fit(file: AdapterFile, model: Any, device: Any = None) -> Tuning:
    """The adapter as modules for this model. Raises UserError with every layer that is missing or of another shape."""
    tuning: Tuning = LAYOUTS[file.layout].fit(file, model, device)
    tuning.about = dict(file.about)
    if "head" in file.facts:
        head.fit(file.facts["head"], tuning, model, file.folder, device)
    return tuning


def settings(file: AdapterFile, model: Any) -> dict[str, Any]:
    """The settings of the method, `name` among them, that the file fixes for a run that goes on from it."""
    return LAYOUTS[file.layout].settings(file, model)


def base_of(folder: Path) -> str:
    """The base model that an adapter folder names."""
    config = config_of(folder)
    return str(config.get("base_model_name_or_path") or config.get("model_name") or "")  # the second is AdapterHub's word


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
