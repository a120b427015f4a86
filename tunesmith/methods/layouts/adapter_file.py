"""An adapter folder as files: its config, its tensors, and what of it is ours alone. What they mean is a matter of `layouts/`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.models.fingerprint import difference, fingerprint

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "tunesmith.json"
SHOWN = 20  # problems named in one error


@dataclass(frozen=True)
class AdapterFile:
    """An adapter folder's contents, not yet tied to a model."""

    folder: Path
    base: str
    layout: str  # the line of `layout.LAYOUTS` that read it
    tensors: dict[str, Tensor]  # by names of the layout's own
    facts: dict[str, Any]  # what the layout took from the config
    about: dict[str, Any] = field(default_factory=dict)  # ABOUT, which only we write


def config_of(folder: Path) -> dict[str, Any]:
    """Raises UserError."""
    config = _json(folder / CONFIG)
    if config is None:
        raise UserError(f"{folder}: no {CONFIG}, so it is not an adapter folder")
    return config


def about(folder: Path) -> dict[str, Any]:
    """What only we write: {} in a folder that others made. Raises UserError."""
    return _json(folder / ABOUT) or {}


def tensors_of(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    """Raises UserError."""
    path = folder / name
    if not path.is_file():
        pickled = sorted(entry.name for entry in folder.glob("*.bin"))
        raise UserError(
            f"{folder}: no {name}" + (f" ({pickled[0]} is a pickle and is not opened; save it as safetensors)" if pickled else "")
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def some(problems: Sequence[str], count: int = SHOWN) -> list[str]:
    """The first of them, and how many more there are."""
    return [*problems[:count], *([f"and {len(problems) - count} more"] if len(problems) > count else [])]


def made_for_another(file: AdapterFile, problems: Sequence[str]) -> UserError:
    """The refusal of a model that an adapter does not fit."""
    return UserError(f"{file.folder} was made for another base model ({file.base or 'unnamed'}):", *[f"  {p}" for p in some(problems)])


def check_base(file: AdapterFile, folder: Path) -> None:
    """Raises UserError where the base in `folder` is not the one that the adapter was made over. Folders of others do not say."""
    made_over = file.about.get("base")
    if made_over and (why := difference(made_over, fingerprint(folder))):
        cure = f"name the base that it was made for ({file.base or 'its folder or hub id'}), or train an adapter for this one"
        raise made_for_another(file, [f"{folder}: {why}", cure])


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not an adapter's settings")
    return value
