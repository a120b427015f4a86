"""Taking values out of a row: by name or dotted path, as text, with a reason where they are not what they should be."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.sample import RowError


def describe(value: Any) -> str:
    """A JSON value's kind in plain words, with the value where it is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"the number {value}" if abs(value) < 1e15 else "a number"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + ("..." if len(value) > 40 else "")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"an object with {', '.join(map(str, list(value)[:4])) or 'nothing'}"


def required_text(values: Mapping[str, Any], key: str, what: str = "") -> str:
    """A text that is there and not blank. Raises RowError."""
    if key not in values:
        raise RowError(f"no {key!r} (the row has {', '.join(map(str, values)) or 'nothing'})")
    value = values[key]
    if not isinstance(value, str):
        raise RowError(f"{key!r} is {describe(value)}, not a text")
    if not value.strip():
        raise RowError(f"{key!r} is {'blank' if value else 'empty'}" + (f": {what}" if what else ""))
    return value


def optional_text(values: Mapping[str, Any], key: str) -> str:
    """A text, or "" where it is absent, null or blank. Raises RowError for anything else."""
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"{key!r} is {describe(value)}, not a text")
    return value if value.strip() else ""


def parsed_list(value: Any, key: str) -> list[Any]:
    """A list, given as one or as its JSON text (a CSV cell, say); [] for null and blank. Raises RowError."""
    if value is None:
        return []
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{key!r} is a text that is no JSON list ({error})") from None
    if not isinstance(value, list):
        raise RowError(f"{key!r} is {describe(value)}, not a list")
    return value


def json_text(value: Any) -> str:
    """A text as it is; any other value as compact JSON in which no character is escaped without need."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def dig(value: Any, path: str) -> Any:
    """The value at a path such as `userInput.text` or `labels.0.slot`. Raises KeyError with the part that is absent.

    A key that itself holds dots is tried before its parts.
    """
    if isinstance(value, dict):
        if path in value:
            return value[path]
        parts = path.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:cut])
            if head in value:
                return dig(value[head], ".".join(parts[cut:]))
    if isinstance(value, list):
        head, _, rest = path.partition(".")
        if head.lstrip("-").isdigit() and -len(value) <= int(head) < len(value):
            return dig(value[int(head)], rest) if rest else value[int(head)]
    raise KeyError(path.partition(".")[0])
