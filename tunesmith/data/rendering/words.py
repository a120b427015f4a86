"""Words of a text, and the token that each of them ends with.

    Angela Merkel visited 北京.
    └────┘ └────┘ └─────┘ ││└ a word: letters and digits between blanks; each other sign;
                          └┴─ each character of a script that is written without blanks

A causal model has read a word at the last of its tokens, so that one is where the word's label is predicted. No token may
reach across a word's end, or two words had one place between them: where the tokenizer's own would ("北京" is one token of
many vocabularies), it is cut there, and only there.
"""

import itertools
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.rendering.tokens import Encoder

Span = tuple[int, int]  # characters: begin, and the end that is not included

# Scripts without blanks: Chinese and Japanese with their punctuation and full-width forms; Thai, Lao, Burmese, Khmer.
_ALONE = "\u2e80-\u303f\u3040-\u30ff\u31c0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65\U00020000-\U0003ffff"
_ALONE += "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_PIECE = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|\S")
_JOINERS = "\u200c\u200d"  # inside words of Persian and of Indian scripts


@dataclass(frozen=True, slots=True)
class Placed:
    """A text's tokens, and the characters that each stands for; those of a blank or a special token may be none."""

    text: str
    ids: list[int]
    spans: list[Span]


@dataclass(frozen=True, slots=True)
class Aligned:
    """Tokens of which none reaches across a word's end. `positions[n]` is the last token of `words[n]`."""

    ids: list[int]
    positions: tuple[int, ...]
    words: tuple[Span, ...]


def words_of(text: str) -> tuple[Span, ...]:
    """The words of a text, in order. A combining mark belongs to the character before it."""
    found: list[Span] = []
    joins = False  # the piece before ended with a mark that goes on with letters
    for match in _PIECE.finditer(text):
        start, end = match.span()
        first = text[start]
        mark = end - start == 1 and (first in _JOINERS or unicodedata.category(first)[0] == "M")
        goes_on = bool(found) and found[-1][1] == start and (mark or (joins and first.isalnum() and not re.match(f"[{_ALONE}]", first)))
        if goes_on:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        joins = mark
    return tuple(found)


def place(encoder: Encoder, texts: Sequence[str], *, split: bool) -> list[Placed]:
    """Tokens of each text as `Encoder.batch` gives them, with their places."""
    return [Placed(text, ids, spans) for text, (ids, spans) in zip(texts, encoder.placed(texts, split=split), strict=True)]


def place_inside(encoder: Encoder, text: str) -> Placed:
    """Tokens of a text in which nothing is special, as they are inside a document: no blank is put before it."""
    if not encoder.adds_blank:
        return place(encoder, [text], split=True)[0]
    [placed] = place(encoder, ["\n" + text], split=True)
    first = next((number for number, (_, end) in enumerate(placed.spans) if end > 1), len(placed.ids))
    return Placed(text, placed.ids[first:], [(max(begin - 1, 0), max(end - 1, 0)) for begin, end in placed.spans[first:]])


def align(encoder: Encoder, texts: Sequence[Placed], words: Sequence[Sequence[Span]]) -> list[Aligned]:
    """The tokens of each text, cut at the ends of its words where they reach across one, and the words' last tokens.

    A word of which no token is left (some tokenizers drop characters) is left out; words whose tokens cannot be cut apart
    become one.
    """
    cuts = [_cuts(text, [end for _, end in own]) for text, own in zip(texts, words, strict=True)]
    parts = list(dict.fromkeys(part for own in cuts for cut in own for part in cut.parts))
    ids = dict(zip(parts, _inside(encoder, parts), strict=True))
    cut_apart = [_with_cuts(text, own, ids) if own else text for text, own in zip(texts, cuts, strict=True)]
    changed = [number for number, own in enumerate(cuts) if own]
    before = encoder.decode([texts[number].ids for number in changed])
    after = encoder.decode([cut_apart[number].ids for number in changed])
    for number, old, new in zip(changed, before, after, strict=True):
        if old != new:  # the tokenizer joins what was cut in another way
            cut_apart[number] = texts[number]
    return [_last_tokens(text, own) for text, own in zip(cut_apart, words, strict=True)]


@dataclass(frozen=True, slots=True)
class _Cut:
    """Tokens first to last (not included), which reach across word ends, and the texts to take their places."""

    first: int
    last: int
    begin: int  # of the texts, in characters
    parts: tuple[str, ...]


def _cuts(text: Placed, ends: Sequence[int]) -> list[_Cut]:
    """`ends`: of the words, in order. Tokens that share a character (bytes of one) are looked at together."""
    found: list[_Cut] = []
    first, done, trimmed = 0, 0, True
    while first < len(text.ids):
        (begin, end), last = text.spans[first], first + 1
        while last < len(text.ids) and begin < end and text.spans[last][0] < end and text.spans[last][1] > text.spans[last][0]:
            end = max(end, text.spans[last][1])
            last += 1
        inner = ends[bisect_right(ends, begin) : bisect_right(ends, end - 1)] if end > begin else ()
        if inner:
            if trimmed and text.text[done:begin].isspace():  # the blank in front is the token's own, though its place leaves it out
                begin = done
            bounds = [begin, *inner, end]
            found.append(_Cut(first, last, begin, tuple(text.text[a:b] for a, b in itertools.pairwise(bounds))))
        trimmed = end > begin
        done, first = max(done, end), last
    return found


def _inside(encoder: Encoder, parts: Sequence[str]) -> list[list[int]]:
    """Ids of each part as it stands inside a text."""
    return [encoder.text(part, first=False) for part in parts] if encoder.adds_blank else encoder.batch(parts, split=True)


def _with_cuts(text: Placed, cuts: Sequence[_Cut], ids: dict[str, list[int]]) -> Placed:
    new_ids: list[int] = []
    spans: list[Span] = []
    done = 0
    for cut in cuts:
        new_ids += text.ids[done : cut.first]
        spans += text.spans[done : cut.first]
        at = cut.begin
        for part in cut.parts:
            new_ids += ids[part]
            spans += [(at, at + len(part))] * len(ids[part])
            at += len(part)
        done = cut.last
    return Placed(text.text, new_ids + text.ids[done:], spans + text.spans[done:])


def _last_tokens(text: Placed, words: Sequence[Span]) -> Aligned:
    positions: list[int] = []
    kept: list[Span] = []
    at = 0  # the first token that may belong to the word
    for start, end in words:
        last = -1
        for token in range(at, len(text.ids)):
            begin, stop = text.spans[token]
            if begin >= end:
                break
            if stop > start and stop > begin:
                last = token
        if last < 0:
            continue
        at = last
        if positions and positions[-1] == last:
            kept[-1] = (kept[-1][0], end)
        else:
            positions.append(last)
            kept.append((start, end))
    return Aligned(text.ids, tuple(positions), tuple(kept))
