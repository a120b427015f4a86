"""Rotary positions in a GGUF file: numbers among the metadata, and for some scalings a factor for each frequency as a tensor."""

import math
from typing import Any

import numpy as np

from tunesmith.errors import UserError

OUR_WAY_OUT = "export it with --to safetensors instead"


def ropes_of(config: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(rope of the layers that attend to everything, rope of windowed layers where it is another)."""
    rope = dict(config.rope_parameters or {"rope_type": "default", "rope_theta": 10000.0})
    if isinstance(rope.get("full_attention"), dict):
        return dict(rope["full_attention"]), dict(rope.get("sliding_attention") or rope["full_attention"])
    return rope, None


def rope_entries(config: Any, architecture: str, head_size: int) -> dict[str, Any]:
    """Keys without the architecture's name. Raises UserError for a scaling that llama.cpp would not compute."""
    rope, windowed = ropes_of(config)
    kind, width = rope.get("rope_type", "default"), _width(config, rope, head_size)
    entries: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": width}
    lost = []
    if width != head_size and architecture != "phi3":
        lost.append("a partial rotary_factor")
    if windowed is not None:
        entries["rope.freq_base_swa"] = float(windowed["rope_theta"])
        if windowed.get("rope_type", "default") != "default":
            lost.append(f"a scaled rope ({windowed['rope_type']}) in windowed layers")
    if kind == "linear":
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind == "yarn":
        entries |= _yarn(rope, config, lost)
    elif kind == "longrope" and architecture == "phi3":
        original = _original(rope, config)
        entries |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": _long_factor(rope, config, original)}
    elif kind == "llama3" and architecture == "llama":
        pass  # its factors are a tensor
    elif kind != "default":
        lost.append(f"rope_type {kind!r}")
    elif architecture == "phi3":
        entries["rope.scaling.original_context_length"] = config.max_position_embeddings
    if lost:
        raise UserError(*[f"{what} would be lost: llama.cpp does not compute it for {architecture}" for what in lost], OUR_WAY_OUT)
    return entries


def rope_tensors(config: Any, head_size: int) -> dict[str, np.ndarray]:
    """Factors by which each frequency is divided, fp32 [rotated channels / 2], by llama.cpp's names."""
    rope, _ = ropes_of(config)
    width = _width(config, rope, head_size)
    if rope.get("rope_type") == "llama3":
        return {"rope_freqs.weight": _llama3(rope, width)}
    if rope.get("rope_type") == "longrope":
        named = {"rope_factors_long.weight": rope["long_factor"], "rope_factors_short.weight": rope["short_factor"]}
        return {name: np.array(factors, dtype=np.float32) for name, factors in named.items()}
    return {}


def _width(config: Any, rope: dict[str, Any], head_size: int) -> int:
    partial = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(head_size * (1.0 if partial is None else partial))


def _llama3(rope: dict[str, Any], width: int) -> np.ndarray:
    """Long waves are slowed by `factor`, short ones are left alone, and between the two it changes smoothly."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for i in range(width // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * i / width)
        turns = rope["original_max_position_embeddings"] / wavelength
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def _yarn(rope: dict[str, Any], config: Any, lost: list[str]) -> dict[str, Any]:
    factor = float(rope["factor"])
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    if not math.isclose(rope.get("attention_factor") or usual, usual, rel_tol=1e-6):
        lost.append(f"yarn with attention_factor={rope['attention_factor']}")
    lost += [f"yarn with {key}={rope[key]}" for key in ("mscale", "mscale_all_dim") if rope.get(key)]
    if rope.get("truncate") is False:
        lost.append("yarn with truncate=false")
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original(rope, config),
        "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1.0),
    }


def _original(rope: dict[str, Any], config: Any) -> int:
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original or config.max_position_embeddings)


def _long_factor(rope: dict[str, Any], config: Any, original: int) -> float:
    """What attention is multiplied by: given, or by the rule of the LongRoPE paper."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    scale = rope.get("factor") or config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
