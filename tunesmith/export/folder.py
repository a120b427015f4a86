"""What stands beside the tensors of a model folder that others will open: sizes in the index, stops, names that both versions of
`transformers` read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.models.gguf import config_for_both_versions
from tunesmith.models.matrix import INDEX

CONFIG, GENERATION = "config.json", "generation_config.json"


def right_index(folder: Path) -> None:
    """Let the index of a checkpoint of several files name the bytes that its tensors really have."""
    path = folder / INDEX
    if not path.is_file():
        return
    index = _json(path)
    total = sum(tensor_bytes(folder / name) for name in set(index["weight_map"].values()))
    if index.get("metadata", {}).get("total_size") != total:
        index["metadata"] = index.get("metadata", {}) | {"total_size": total}
        _write(path, index)


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors in a safetensors file."""
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header


def name_stops(folder: Path, stops: Iterable[int]) -> None:
    """Let generation_config.json name every token that ends an answer: a base's own often lacks the one that its chat template
    writes, and a server would go on past it. Those named already stay in front."""
    path, wanted = folder / GENERATION, sorted(stops)
    values = _json(path) if path.is_file() else {}
    named = values.get("eos_token_id")
    held = list(named) if isinstance(named, list) else [] if named is None else [int(named)]
    missing = [stop for stop in wanted if stop not in held]
    if not missing:
        return
    if not values:
        config = _json(folder / CONFIG)
        values = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    every = held + missing
    _write(path, values | {"eos_token_id": every[0] if len(every) == 1 else every})


def name_both(folder: Path) -> None:
    """Let config.json hold what version 4 and version 5 of `transformers` each look for."""
    config = _json(folder / CONFIG)
    if (both := config_for_both_versions(config)) != config:
        _write(folder / CONFIG, both)


def untie(folder: Path) -> None:
    """Embedding and head are two tensors from now on; some architectures tie them unless told not to."""
    config = _json(folder / CONFIG) | {"tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = config["text_config"] | {"tie_word_embeddings": False}
    _write(folder / CONFIG, config)


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
