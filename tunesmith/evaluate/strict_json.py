"""JSON as a strict program reads it, and its values in one spelling, so that equal answers compare equal."""

import json
import unicodedata
from typing import Any


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else: NaN, doubled keys, a fence, words around it."""
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def container(text: str) -> type | None:
    """dict or list where the text is a JSON object or array, else None."""
    try:
        value = parse(text)
    except ValueError:
        return None
    return type(value) if isinstance(value, dict | list) else None


def spell(value: Any) -> str:
    """One text per value: keys sorted, strings composed (NFC), 2.0 as 2."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def mostly_json(references: list[str]) -> bool:
    """At least 80 % of the references are JSON objects or arrays."""
    return bool(references) and sum(container(text) is not None for text in references) >= 0.8 * len(references)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {unicodedata.normalize("NFC", key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice")
    return result
