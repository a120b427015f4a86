"""Which base is this? A few numbers of a checkpoint at fixed places: the same weights in another number format give nearly the
same ones, another fine-tune of the same architecture does not.

    embedding ─┐
    first block's first and last matrix ─┤   8 values each at places that do not hang on the number of rows,
    middle block's ──────────────────────┤   read as slices of the files: milliseconds whatever the model's size
    last block's ────────────────────────┤
    final norm ─┘

Compared tensor by tensor, ‖a − b‖ / ‖b‖, and the root mean square of that over tensors: a norm's values near 1 would else
outweigh everything. bfloat16 comes to about .0015 by this measure, Q8_0 to .006, Q4 to .08.
"""

import math
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tunesmith.errors import UserError
from tunesmith.models.load import load_config
from tunesmith.models.matrix import tensor_files

VALUES = 8  # of each tensor
LIMIT = 0.012  # the measure above, below which two checkpoints hold the same weights
KIN = 0.3  # the measure of models that have a training in common
_STEP = 613  # rows between two values: a prime, so that narrow matrices are not met at one column
_FLOATS = ("F64", "F32", "F16", "BF16")


def fingerprint(folder: Path) -> dict[str, Any]:
    """{model_type, hidden_size, layers, vocabulary, values: {short name of a tensor: [float]}}; no paths, no times.

    `values` is empty where the checkpoint holds no float tensors in safetensors files.
    """
    config = load_config(folder)
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", None)
    return {
        "model_type": config.model_type,
        "hidden_size": getattr(text, "hidden_size", None),
        "layers": layers,
        "vocabulary": getattr(text, "vocab_size", None),
        "values": _values(folder, layers),
    }


def difference(ours: dict[str, Any], theirs: dict[str, Any], limit: float = LIMIT) -> str:
    """Why two fingerprints are not of the same weights, for people; "" where they are. With limit 0 only equal values agree.

    Another vocabulary alone is no difference: whoever only adds tokens keeps the weights.
    """
    for key, what in (("hidden_size", "channels"), ("layers", "blocks")):
        if ours.get(key) != theirs.get(key):
            return f"{ours.get(key)} {what} there, {theirs.get(key)} here"
    mine, other = ours.get("values") or {}, theirs.get("values") or {}
    shared = [name for name in mine if name in other and len(mine[name]) == len(other[name])]
    if not mine or not other:
        return ""  # nothing to compare but shapes
    if 2 * len(shared) < min(len(mine), len(other)):
        return f"its checkpoint has other tensors ({ours.get('model_type')} there, {theirs.get('model_type')} here)"
    apart = {name: _apart(mine[name], other[name]) for name in shared}
    mean = math.sqrt(sum(value**2 for value in apart.values()) / len(apart))
    if mean <= limit:
        return ""
    worst = max(apart, key=lambda name: apart[name])
    kin = "; another fine-tune of the same model, or the same one rounded harder" if mean < KIN else ""
    return f"the weights differ by {mean:.1%} ({worst}: {apart[worst]:.1%}){kin}"


def _apart(a: list[float], b: list[float]) -> float:
    """‖a − b‖ / ‖b‖."""
    far = math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    size = math.sqrt(sum(y**2 for y in b))
    return far / size if size else float(far > 0)


def _values(folder: Path, layers: int | None) -> dict[str, list[float]]:
    try:
        files = tensor_files(folder)
    except UserError:
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    opened = {path: safe_open(path, framework="pt") for path in sorted(set(files.values()))}
    for name, path in files.items():
        part = opened[path].get_slice(name)
        if part.get_dtype() in _FLOATS:
            shapes[name] = tuple(part.get_shape())
    found = {}
    for short, name in _chosen(shapes, layers).items():
        part, shape = opened[files[name]].get_slice(name), shapes[name]
        found[short] = [_tidy(_at(part, place)) for place in _places(shape)]
    return found


def _chosen(shapes: dict[str, tuple[int, ...]], layers: int | None) -> dict[str, str]:
    """{name without what stands in front of the blocks: whole name} of the tensors that are sampled.

    The blocks are the numbered list as long as the model is deep, or else the longest: a picture tower has blocks too.
    """
    numbered: dict[str, dict[int, list[str]]] = {}
    for name in shapes:
        if found := re.match(r"(.*?)\.?(\w+)\.(\d+)\.", name):
            numbered.setdefault(f"{found[1]}.{found[2]}".lstrip("."), {}).setdefault(int(found[3]), []).append(name)
    if not numbered:
        return {name: name for name in sorted(shapes)[:VALUES]}
    blocks = max(numbered, key=lambda prefix: (len(numbered[prefix]) == layers, len(numbered[prefix]), prefix))
    root = blocks.rpartition(".")[0]  # "model" of "model.layers"
    numbers = sorted(numbered[blocks])
    chosen: dict[str, str] = {}
    for number in dict.fromkeys([numbers[0], numbers[len(numbers) // 2], numbers[-1]]):
        matrices = sorted(name for name in numbered[blocks][number] if len(shapes[name]) == 2)
        for name in dict.fromkeys(matrices[:1] + matrices[-1:]):
            chosen[name.removeprefix(f"{root}.")] = name
    beside = sorted(name for name in shapes if name.rpartition(".")[0].rpartition(".")[0] == root and name not in chosen.values())
    inside = {name for name in beside if not re.search(r"\.\d+\.", f".{name}.")}
    tables = sorted((name for name in inside if len(shapes[name]) == 2), key=lambda name: (-math.prod(shapes[name]), name))
    norms = [name for name in sorted(inside) if len(shapes[name]) == 1 and name.endswith("weight")]
    for name in tables[:1] + norms[-1:]:
        chosen[name.removeprefix(f"{root}.")] = name
    return chosen


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Where the values are taken. Rows that were added behind the others do not move them."""
    rows, columns = shape[0], shape[1] if len(shape) > 1 else 0
    every = [(37 + _STEP * i) % rows for i in range(VALUES)]
    return [(row, (11 + 101 * i) % columns) if columns else (row,) for i, row in enumerate(every)]


def _at(part: Any, place: tuple[int, ...]) -> float:
    window = part[tuple(slice(i, i + 1) for i in place)] if len(place) > 1 else part[place[0] : place[0] + 1]
    return float(window.float().flatten()[0])


def _tidy(value: float) -> float:
    """Six digits: enough to tell bases apart, and the same text on every machine."""
    return float(f"{value:.6g}")
