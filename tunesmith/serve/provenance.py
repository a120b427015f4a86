"""What a folder with weights tells of itself: which bytes it holds, how it was made, how it scored."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.run_yaml import read_yaml

DATA = ("rows", "documents", "tokens", "learned_tokens", "template_sha256", "mask_sha256", "stream_sha256")  # what is kept of data.json


def result(folder: Path) -> Path:
    """Where a run's or an adapter folder's weights lie. Raises UserError."""
    for inner in (folder / "model", folder / "adapter", folder):
        if any((inner / name).is_file() for name in ("adapter_config.json", "config.json")) and any(inner.glob("*.safetensors")):
            return inner
    raise UserError(f"{folder}: neither a run with a result nor an adapter folder (its weights as safetensors are missing)")


def hashes(folder: Path) -> tuple[str, str]:
    """(of the weights, of the weights and the settings that say how they act)."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    content = weights.copy()
    for name in ("adapter_config.json", "config.json"):
        if (folder / name).is_file():
            content.update((folder / name).read_bytes())
    return weights.hexdigest(), content.hexdigest()


def facts_of(folder: Path) -> dict[str, Any]:
    """What the folder tells of its making; what is not there is left out."""
    facts: dict[str, Any] = {}
    if (folder / "run.yaml").is_file():
        run, _ = read_yaml(folder / "run.yaml")
        facts["run"] = run
        method = run.get("method")
        facts["method"] = method.get("name") if isinstance(method, dict) else method
    elif config := _json(result(folder) / "adapter_config.json"):
        facts["method"] = str(config.get("peft_type", "")).lower()
    if scores := _json(folder / "scores.json"):
        facts["scores"] = scores
    if data := _json(folder / "data.json"):
        facts["data"] = {key: data[key] for key in DATA if key in data}
    about, plan = _json(result(folder) / "tunesmith.json"), _json(folder / "plan.json")
    if base := about.get("base") or plan.get("base"):
        facts["base"] = base
    return facts


def _json(path: Path) -> dict[str, Any]:
    """{} for a file that is missing or is no object: what is told beside the weights keeps nobody from registering them."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
