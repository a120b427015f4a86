"""Texts with marked spans: entities or slots by their places.

    {"text": "Angela Merkel visited Paris", "spans": [{"start": 0, "end": 13, "label": "PER"}, {"start": 22, "end": 27, "label": "LOC"}]}

Places count characters; the end is not included, unless texts given beside them say that it is. The answer is the entities
by type in compact JSON, in the order in which they appear: {"PER":["Angela Merkel"],"LOC":["Paris"]}, and {} where there
are none. Read are also [start, end, type] triples; {type: {text: [[start, end]]}}, as CLUENER has them; userInput.text with
labels of slot and valueSpan, as RESTAURANTS-8K has them; and `data`, the text in pieces of which some are entities, as SNIPS
has them. A `prompt` says what is to be done; the text stands under it or in it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.fields import describe, listed, required_text
from tunesmith.data.formats.conll import by_type, question
from tunesmith.data.formats.labels import LABELS, TEXTS, named, short
from tunesmith.data.sample import RowError, Sample

COLUMNS = ("text", "userInput", "data", "spans", "entities", "slots", "labels", "label", "prompt")
NEEDED = ("text", "spans")
SPANS = ("spans", "entities", "slots", "labels", "label")
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
    if "data" in columns and not _texts(columns):
        return _in_pieces(values.get("data"))
    key = next((key for key in SPANS if key in columns), None)
    if key is None or not ("userInput" in columns or len(_texts(columns)) == 1):
        return False
    # an intent beside slots, say: two answers, of which nobody knows the one that is meant
    if any(values.get(name) is not None and short(values[name]) for name in named(columns - {key}, LABELS)):
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
    if "data" in values and not _texts(values):
        text, spans = _joined(values["data"])
    else:
        text, spans = _text(values), _given(values)
    more = _included(text, spans)
    found = sorted({(span.start, span.end + more, span.kind) for span in spans})
    answer = by_type((kind, text[start:end]) for start, end, kind in found)
    messages = ({"role": "user", "content": question(values, text)}, {"role": "assistant", "content": answer})
    return Sample(origin, messages, source=text, entities=tuple(_without_blanks(text, *span) for span in found))


def _without_blanks(text: str, start: int, end: int, kind: str) -> tuple[int, int, str]:
    """A span without the blanks that slipped in at its ends; one of blanks alone stays as it is."""
    marked = text[start:end]
    if not marked.strip():
        return start, end, kind
    return start + len(marked) - len(marked.lstrip()), end - len(marked) + len(marked.rstrip()), kind


def _texts(columns: Iterable[str]) -> list[str]:
    """The columns that may hold the text; `text` is the one, where it is there."""
    found = [name for name in named(columns, TEXTS) if name.lower() != "prompt"]
    return ["text"] if "text" in found else found


def _text(values: dict[str, Any]) -> str:
    inner = values.get("userInput")
    if isinstance(inner, dict) and "text" not in values:
        return required_text(inner, "text", "there is nothing to mark")
    found = _texts(values)
    if len(found) > 1:
        raise RowError(f"{', '.join(found)} may all be the text: say which by data.columns={{text: ...}}")
    return required_text(values, found[0] if found else "text", "there is nothing to mark")


def _in_pieces(value: Any) -> bool:
    """Whether a value is a text in pieces, of which some are entities."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(piece, dict) and isinstance(piece.get("text"), str) for piece in value)
    )


def _joined(pieces: Any) -> tuple[str, list[Span]]:
    """The text of [{text, entity}, ...] and its spans; a piece without a type is none."""
    if not _in_pieces(pieces):
        raise RowError(f"'data' is {describe(pieces)}, not a list of pieces {{text, entity}}")
    text, spans = "", []
    for piece in pieces:
        kind = _one(piece, TYPE)
        if kind is not None and (not isinstance(kind, str) or not kind.strip()):
            raise RowError(f"the type of {piece['text'][:40]!r} is {describe(kind)}, not a text")
        if kind is not None:
            spans.append(Span(len(text), len(text) + len(piece["text"]), kind))
        text += piece["text"]
    required_text({"data": text}, "data", "there is nothing to mark")
    return text, spans


def _given(values: dict[str, Any]) -> list[Span]:
    """The spans of a row. Those of slots may be absent."""
    key = next((key for key in SPANS if key in values), None)
    if key is None and "userInput" not in values:
        raise RowError(f"no 'spans' (the row has {', '.join(map(str, values))})")
    return [] if key is None else _spans(values[key], key)


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
