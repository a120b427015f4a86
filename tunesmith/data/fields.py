"""Taking values out of a row: by name or dotted path, as text, with a reason where they are not what they should be."""

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.data.sample import RowError

DOUBT = (
    "a 'label' of 0 or 1 stands beside the answer and is not used; where it says which answers are good, "
    "make it true and false: a preference (docs/data/preference.md)"
)
MEDIA = ("images", "image", "videos", "video", "audios", "audio")


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


def listed(value: Any) -> list[Any]:
    """A list, given as one or as its JSON text; [] for anything else. For recognising rows, which raises nothing."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def judged(values: Mapping[str, Any]) -> bool | None:
    """Whether the row's answer was judged good (true) or bad (false), in `label` or `kto_tag`; None where it was not judged.

    A CSV's cells say it as a text.
    """
    for key in ("kto_tag", "label"):
        value = values.get(key)
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
    return None


def doubts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where a `label` of 0 or 1 stands beside an answer: a class that is not needed, or a judgement that is overlooked."""
    label = values.get("label")
    return (DOUBT,) if not isinstance(label, bool) and label in (0, 1, "0", "1") else ()


def refuse_media(values: Mapping[str, Any]) -> None:
    """A text that speaks of a picture must not be learned without it. Raises RowError."""
    found = next((key for key in MEDIA if values.get(key)), None)
    if found:
        raise RowError(f"{found!r} is {describe(values[found])}: models are trained on text only; leave rows with {found} out")


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
