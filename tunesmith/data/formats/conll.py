"""Tagged tokens: named entities as CoNLL files and their descendants have them.

    {"tokens": ["Angela", "Merkel", "visited", "Paris"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]}

Such rows come from files of one token a line too. The question is the sentence, the answer its entities by type in compact
JSON, in the order in which they appear: {"PER":["Angela Merkel"],"LOC":["Paris"]}, and {} where there are none. IOB1, IOB2
(BIO), BIOES, BILOU and BMES are all read. A `prompt` says what is to be done; the sentence stands under it or in it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunesmith.data.fields import describe, json_text, listed, optional_text, parsed_list
from tunesmith.data.sample import RowError, Sample

COLUMNS = ("tokens", "words", "tags", "ner_tags", "labels", "prompt")
NEEDED = ("tokens", "tags")
TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels")

TAG = re.compile(r"O|([BIMEULS])-(.+)", re.DOTALL)  # M: middle (BMES); E and L: the last one; S and U: the only one
NO_TAG = "_"  # what some files write instead of O

# Written without blanks between them: Chinese and Japanese, their punctuation and full-width forms. Korean has blanks.
UNSPACED = re.compile("[\u2e80-\u303f\u3040-\u30ff\u31c0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff]")

# Illegal transitions in IOB2, by kind. Files of IOB1, where an entity begins with I-, are read right by the same rule.
AFTER_O = "illegal transition O -> I-TYPE, read as the beginning of an entity (IOB2 assumed; legal in IOB1)"
AFTER_OTHER = "illegal transition -> I- of another type, read as the beginning of an entity (IOB2 assumed; legal in IOB1)"
END_ALONE = "illegal E- or L- that ends no entity, read as an entity of its own (BIOES assumed where E-, L-, S-, U- stand)"
MIXED = "entities of BIOES (E-, L-, S-, U-) and of IOB2 in one sentence, both read"


@dataclass(frozen=True, slots=True)
class Entity:
    """Tokens start to end, the end not included."""

    kind: str
    start: int
    end: int


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    key = next((key for key in TAGS if key in columns), None)
    words = next((name for name in TOKENS if name in columns), None)
    if key is None or words is None:
        return False
    tokens, tags = listed(values.get(words)), listed(values.get(key))
    return bool(tokens) and all(isinstance(tag, int) or (isinstance(tag, str) and (TAG.fullmatch(tag) or tag == NO_TAG)) for tag in tags)


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    key = next((key for key in TAGS if key in values), "tags")
    words = next((name for name in TOKENS if name in values), "tokens")
    for name in (words, key):
        if name not in values:
            raise RowError(f"no {name!r} (the row has {', '.join(map(str, values))})")
    tokens, tags = parsed_list(values[words], words), parsed_list(values[key], key)
    _check(tokens, tags, key)
    tags = ["O" if tag == NO_TAG else tag for tag in tags]
    entities, notes = decode(tags)
    sentence, places = joined(tokens)
    found = tuple((places[entity.start][0], places[entity.end - 1][1], entity.kind) for entity in entities)
    answer = by_type((kind, sentence[start:end]) for start, end, kind in found)
    messages = ({"role": "user", "content": question(values, sentence)}, {"role": "assistant", "content": answer})
    return Sample(origin, messages, notes=notes, source=sentence, entities=found, words=tuple(places), scheme=scheme(tags, notes))


def question(values: dict[str, Any], text: str) -> str:
    """The text, under what `prompt` says where it does not hold the text already. Raises RowError."""
    prompt = optional_text(values, "prompt")
    return text if not prompt else prompt if text in prompt else f"{prompt}\n{text}"


def by_type(entities: Iterable[tuple[str, str]]) -> str:
    """The answer: compact JSON {type: [text, ...]} of (type, text), in order of first appearance."""
    result: dict[str, list[str]] = {}
    for kind, text in entities:
        result.setdefault(kind, []).append(text)
    return json_text(result)


def joined(tokens: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The sentence, and where in it each token begins and ends.

    A blank stands between two tokens, but not between two of Chinese or Japanese, nor anywhere in a sentence of them that
    is cut into single characters.
    """
    by_character = any(map(UNSPACED.search, tokens)) and all(len(token) == 1 for token in tokens)
    sentence, places = "", []
    for token in tokens:
        together = by_character or (sentence and UNSPACED.match(sentence[-1]) and UNSPACED.match(token))
        sentence += "" if together or not sentence else " "
        places.append((len(sentence), len(sentence) + len(token)))
        sentence += token
    return sentence, places


def decode(tags: list[str]) -> tuple[list[Entity], tuple[str, ...]]:
    """The entities that tags mean, whatever their scheme, and what in them is illegal in IOB2 and BIOES."""
    entities: list[Entity] = []
    notes: dict[str, None] = {}
    kind, start, closed = "", 0, 0  # the entity at hand ("" for none); how many ended by E-, L-, S- or U-
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        goes_on = prefix in ("I", "M", "E", "L") and now == kind
        if kind and not goes_on:
            entities.append(Entity(kind, start, place))
        if tag == "O":
            kind = ""
            continue
        if not goes_on:
            if prefix in ("I", "M"):
                notes[AFTER_OTHER if kind else AFTER_O] = None
            elif prefix in ("E", "L"):
                notes[END_ALONE] = None
            kind, start = now, place
        if prefix in ("E", "L", "S", "U"):
            entities.append(Entity(kind, start, place + 1))
            closed += 1
            kind = ""
    if closed and closed < len(entities):
        notes[MIXED] = None
    return entities, tuple(notes)


def scheme(tags: list[str], notes: tuple[str, ...]) -> str:
    """The scheme of a sentence's tags, "" where there is no entity. `notes`: what `decode` says of them.

    One that never writes B- but between two entities of one type is IOB1; a file that also has other sentences is IOB2 with mistakes.
    """
    prefixes = {tag[0] for tag in tags if tag != "O"}
    if not prefixes:
        return ""
    if "M" in prefixes:
        return "BMES"
    if prefixes & {"L", "U"}:
        return "BILOU"
    if prefixes & {"E", "S"}:
        return "BIOES"
    begins = [place for place, tag in enumerate(tags) if tag[0] == "B"]
    between = all(place and tags[place - 1].partition("-")[2] == tags[place].partition("-")[2] for place in begins)
    return "IOB1" if between and {AFTER_O, AFTER_OTHER} & set(notes) else "IOB2"


def _check(tokens: list[Any], tags: list[Any], key: str) -> None:
    if not tokens:
        raise RowError("'tokens' is empty")
    for number, token in enumerate(tokens, start=1):
        if not isinstance(token, str) or not token:
            raise RowError(f"token {number} is {describe(token)}, not a text" if token != "" else f"token {number} is empty")
    if len(tokens) != len(tags):
        raise RowError(f"{len(tokens)} tokens, but {len(tags)} in {key!r}: each token has one tag")
    for number, tag in enumerate(tags, start=1):
        if isinstance(tag, int) and not isinstance(tag, bool):
            raise RowError(f"{key!r} are numbers whose names stand nowhere in the row: write the names (O, B-PER, I-PER, ...)")
        if not isinstance(tag, str) or not (TAG.fullmatch(tag) or tag == NO_TAG):
            raise RowError(f"tag {number} is {describe(tag)}; tags are O, or B-, I-, E-, S- (or L-, U-, M-) and a type, such as B-PER")
