"""Tokens -> text as they come: half characters wait for their other half, and what may become a stop text waits too.

A token stands for bytes, whatever the text around it is. So text is put together from bytes, and what is said of each token's bytes
(logprobs) and the text that a client gets are always the same thing.
"""

import codecs
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how SentencePiece writes a byte that is no word
_vocabularies: "weakref.WeakKeyDictionary[Any, Vocabulary]" = weakref.WeakKeyDictionary()


@dataclass(eq=False)
class Vocabulary:
    """A tokenizer's words as bytes. `specials` are ids whose text is never shown; `adds_blank`: a text's first word begins with a
    blank that nobody wrote."""

    tokenizer: Any
    specials: dict[int, str]
    adds_blank: bool
    longest: int  # letters of the longest word
    _spell: Callable[[str, int], bytes]
    _known: dict[int, bytes] = field(default_factory=dict)

    def bytes_of(self, token: int) -> bytes:
        """b"" for ids beyond the tokenizer's words."""
        if token not in self._known:
            word = self.tokenizer.convert_ids_to_tokens(token) if token < len(self.tokenizer) else None
            self._known[token] = b"" if word is None else self._spell(word, token)
        return self._known[token]


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Made once for each tokenizer."""
    if tokenizer not in _vocabularies:
        _vocabularies[tokenizer] = _vocabulary(tokenizer)
    return _vocabularies[tokenizer]


def _vocabulary(tokenizer: Any) -> Vocabulary:
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    specials = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    specials |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    spell = _speller(tokenizer)
    words = tokenizer.get_vocab()
    longest = max(map(len, words))
    found = Vocabulary(
        tokenizer, specials, False, longest, lambda word, token: added[token].encode() if token in added else spell(word, token)
    )
    blank = next((index for word, index in words.items() if word[:1] in "▁Ġ" and word[1:].isalpha()), None)
    if blank is not None and found.bytes_of(blank).startswith(b" "):
        found.adds_blank = not tokenizer.decode([blank], clean_up_tokenization_spaces=False).startswith(" ")
    return found


def _speller(tokenizer: Any) -> Callable[[str, int], bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = repr(backend.decoder) if backend is not None else "Metaspace"  # without a backend: SentencePiece itself
    if "ByteLevel" in decoder:
        letters = _byte_letters()
        return lambda word, _: bytes(letters[letter] for letter in word) if all(map(letters.__contains__, word)) else word.encode()
    if any(part in decoder for part in ("Metaspace", "ByteFallback", "▁")):
        return lambda word, _: _sentence_piece(word)
    before = tokenizer("x", add_special_tokens=False)["input_ids"]  # another kind: whatever it makes of the token behind another one
    first = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    return lambda _, token: tokenizer.decode([*before, token], clean_up_tokenization_spaces=False)[len(first) :].encode()


def _sentence_piece(word: str) -> bytes:
    byte = _BYTE.fullmatch(word)
    return bytes([int(byte[1], 16)]) if byte else word.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE writes for each byte: itself where it can be printed, else one of those from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


class Growing:
    """The text of one answer so far. Special tokens are left out, but for `marks`, which stand as a character of their own."""

    def __init__(self, vocabulary: Vocabulary, marks: Mapping[int, str] = MappingProxyType({}), *, fresh: bool = True):
        """`fresh`: the text begins here, so that a blank put in front of its first word by the tokenizer is no part of it."""
        self._vocabulary, self._marks = vocabulary, marks
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strips = fresh and vocabulary.adds_blank

    @property
    def waits(self) -> bool:
        """Half a character is there."""
        return bool(self._decoder.getstate()[0])

    def add(self, token: int) -> str:
        """What can be shown now that it came."""
        if token in self._vocabulary.specials:
            return self.end() + self._marks.get(token, "")
        text = self._decoder.decode(self._vocabulary.bytes_of(token))
        if self._strips and (text or self.waits):
            self._strips, text = False, text.removeprefix(" ")
        return text

    def end(self) -> str:
        """What is left: a half character that will never be whole."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def text_of(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """The text of tokens that are all there."""
    growing = Growing(vocabulary)
    return "".join([growing.add(token) for token in ids]) + growing.end()


class Stops:
    """Holds back what may become one of the stop texts."""

    def __init__(self, texts: Sequence[str]):
        self._texts = tuple(texts)
        self._held = ""
        self.cut = -1  # characters of all that was added that came from the stop text on; -1: it did not come

    @property
    def held(self) -> int:
        return len(self._held)

    def add(self, text: str) -> str:
        """What can be shown. Nothing may be added once `cut` is set."""
        if not self._texts:
            return text
        text = self._held + text
        places = [place for place in (text.find(stop) for stop in self._texts) if place >= 0]
        if places:
            self._held, self.cut = "", len(text) - min(places)
            return text[: min(places)]
        kept = held_back(text, self._texts)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def end(self) -> str:
        text, self._held = self._held, ""
        return text


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at a text's end may be the beginning of a mark."""
    longest = max(map(len, marks), default=0) - 1
    for size in range(min(longest, len(text)), 0, -1):
        end = text[-size:]
        if any(mark.startswith(end) for mark in marks):
            return size
    return 0
