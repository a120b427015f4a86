"""Texts with marked spans: entities or slots by their places.

    {"text": "Angela Merkel visited Paris", "spans": [{"start": 0, "end": 13, "label": "PER"}, {"start": 22, "end": 27, "label": "LOC"}]}

Places count characters; the end is not included, unless texts given beside them say that it is. The answer is the entities
by type in compact JSON, in the order in which they appear: {"PER":["Angela Merkel"],"LOC":["Paris"]}, and {} where there
are none. Read are also [start, end, type] triples, {type: {text: [[start, end]]}} as CLUENER has them, and
{"userInput": {"text"}, "labels": [{"slot", "valueSpan"}]} as RESTAURANTS-8K has them. A `prompt` says what is to be done;
the text stands under it or in it.
"""

import json
from dataclasses import dataclass
from typing import Any

from tunesmith.data.fields import describe, listed, required_text
from tunesmith.data.formats.conll import by_type, question
from tunesmith.data.sample import RowError, Sample

COLUMNS = ("text", "userInput", "spans", "entities", "labels", "label", "prompt")
NEEDED = ("text", "spans")
SPANS = ("spans", "entities", "labels", "label")
SURE = ("spans", "entities")  # names that also an empty list is a list of spans under

START = ("start", "start_offset", "startIndex", "begin", "offset")
END = ("end", "end_offset", "endIndex", "stop")
TYPE = ("label", "type", "tag", "slot", "entity", "entity_type", "entity_group", "category", "labels")
TEXT = ("text", "value", "word", "surface", "mention")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters start to end; whether the end is included is the row's matter. `said`: its text, where the row gives it."""

    start: int
    end: int
    kind: str
    said: str | None = None


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    key = next((key for key in SPANS if key in columns), None)
    if key is None or not ({"text", "userInput"} & columns):
        return False
    value = values.get(key)
    return looks_marked(value) or (key in SURE and value == [])


def looks_marked(value: Any) -> bool:
    """Whether a value holds spans."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(inner, dict) and inner and all(map(_places, inner.values())) for inner in value.values())
    first = next(iter(listed(value)), None)
    if isinstance(first, dict):
        return _one(first, START) is not None or _one(first, END) is not None or "valueSpan" in first
    return isinstance(first, list) and len(first) == 3 and all(_whole(place) for place in first[:2])


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    inner = values.get("userInput")
    slots = isinstance(inner, dict) and "text" not in values
    text = required_text(inner if slots else values, "text", "there is nothing to mark")  # type: ignore[arg-type]
    key = next((key for key in SPANS if key in values), None)
    if key is None and not slots:
        raise RowError(f"no 'spans' (the row has {', '.join(map(str, values))})")
    spans = _spans(values[key], key) if key is not None else []
    more = _included(text, spans)
    found = sorted({(span.start, span.end + more, span.kind) for span in spans})
    answer = by_type((kind, text[start:end]) for start, end, kind in found)
    return Sample(origin, ({"role": "user", "content": question(values, text)}, {"role": "assistant", "content": answer}))


def _spans(value: Any, key: str) -> list[Span]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"{key!r} is a text that is no JSON list ({error})") from None
    if value is None or value == "":
        raise RowError(f"{key!r} is {describe(value)}; where a text has no spans, write []")
    if isinstance(value, dict):
        return _by_type_and_text(value, key)
    if not isinstance(value, list):
        raise RowError(f"{key!r} is {describe(value)}, not a list of spans")
    return [_span(item, f"{key} {number}") for number, item in enumerate(value, start=1)]


def _by_type_and_text(value: dict[str, Any], key: str) -> list[Span]:
    """{type: {text: [[start, end], ...]}}"""
    spans = []
    for kind, texts in value.items():
        if not isinstance(texts, dict) or not all(map(_places, texts.values())):
            raise RowError(f"{key!r}: {kind!r} is {describe(texts)}, not an object of texts and their [[start, end], ...]")
        spans += [Span(start, end, kind, said) for said, places in texts.items() for start, end in places]
    return spans


def _span(item: Any, where: str) -> Span:
    if isinstance(item, list):
        if len(item) != 3 or not all(map(_whole, item[:2])) or not isinstance(item[2], str) or not item[2].strip():
            raise RowError(f"{where} is {describe(item)}; a span is [start, end, type] or {{start, end, label}}")
        return Span(item[0], item[1], item[2])
    if not isinstance(item, dict):
        raise RowError(f"{where} is {describe(item)}; a span is {{start, end, label}} or [start, end, type]")
    if isinstance(item.get("valueSpan"), dict):
        item = {"startIndex": 0} | item["valueSpan"] | {name: value for name, value in item.items() if name != "valueSpan"}
    start, end, said = _one(item, START), _one(item, END), _one(item, TEXT)
    if end is None and _whole(item.get("length")) and _whole(start):
        end = start + item["length"]
    kind = _one(item, TYPE)
    kind = kind[0] if isinstance(kind, list) and len(kind) == 1 else kind
    if not _whole(start) or not _whole(end):
        raise RowError(f"{where}: start is {describe(start)} and end is {describe(end)}; both are whole numbers of characters")
    if not isinstance(kind, str) or not kind.strip():
        raise RowError(f"{where}: its type is {describe(kind)}; a span has a label (or type, tag, slot)")
    return Span(start, end, kind, said if isinstance(said, str) else None)


def _included(text: str, spans: list[Span]) -> int:
    """1 where the row's ends are included in its spans, else 0. Raises RowError for places that are not in the text."""
    told = [span for span in spans if span.said is not None]
    more = int(bool(told) and _wrong(text, told, 0) is not None and _wrong(text, told, 1) is None)
    if span := _wrong(text, told, more):
        found = text[max(span.start, 0) : span.end + more]
        raise RowError(f"{span.kind} is said to be {span.said!r}, but at {span.start} to {span.end} the text has {found!r}")
    for span in spans:
        if not 0 <= span.start < span.end + more:
            raise RowError(f"{span.kind} begins at {span.start} and ends at {span.end}: nothing stands there")
        if span.end + more > len(text):
            raise RowError(f"{span.kind} ends at {span.end}, but the text has {len(text)} characters")
    return more


def _wrong(text: str, spans: list[Span], more: int) -> Span | None:
    """The first span whose text is not what is said."""
    return next((span for span in spans if span.start < 0 or text[span.start : span.end + more] != span.said), None)


def _one(item: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _places(value: Any) -> bool:
    """Whether a value is a list of [start, end] pairs."""
    return isinstance(value, list) and bool(value) and all(map(_pair, value))


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
