"""Ids of tokens that an engine told of by their text alone.

llama.cpp's stream is one of texts: while a character is not whole it sends nothing, and then one event for all its tokens, with the
last one's id. How many are missing is known, and their bytes; here they get their ids back.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tunesmith.data.rendering.tokens import ENCODING

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
BLANK = "▁"


class Pieces:
    """The words of a tokenizer by their bytes."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        added = set(getattr(tokenizer, "added_tokens_decoder", {}))
        words = {text: token for text, token in tokenizer.get_vocab().items() if token not in added}
        # byte-level words are written in an alphabet of 256 letters, in which a blank is a Ġ
        in_letters = not any(BYTE.fullmatch(text) for text in words)
        self._bytes = {token: _from_letters(text) if in_letters else _plain(text) for text, token in words.items()}
        self._ids: dict[bytes, int] = {}
        for token, data in sorted(self._bytes.items(), reverse=True):  # of two with the same bytes, the lower id
            self._ids[data] = token
        self._longest = max(map(len, self._ids), default=1)

    def before(self, text: str, last: int, count: int) -> list[int]:
        """`count` ids whose bytes, with those of `last` behind them, are `text`. As the tokenizer would write it if that fits; where
        nothing does, as for bytes that are no text at all, so many halves of a character."""
        whole = text.encode()
        behind = self._bytes.get(last, b"")
        if not whole.endswith(behind):
            return self.unknown(count)
        with ENCODING:
            usual = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(usual) == count + 1 and usual[-1] == last:
            return list(usual[:-1])
        return next(self._splits(whole[: len(whole) - len(behind)], count), self.unknown(count))

    def unknown(self, count: int) -> list[int]:
        """Ids in the place of so many that nobody knows: each shows as U+FFFD, and is counted."""
        half = self._ids.get(b"\x80")
        return [] if half is None else [half] * count

    def _splits(self, data: bytes, count: int) -> Iterator[list[int]]:
        """Ways to write some bytes with so many words, long ones first."""
        if count == 0:
            if not data:
                yield []
            return
        for size in range(min(self._longest, len(data) - count + 1), 0, -1):
            if (token := self._ids.get(data[:size])) is not None:
                yield from ([token, *rest] for rest in self._splits(data[size:], count - 1))


@cache
def _letters() -> dict[str, int]:
    """Byte-level tokenizers' letters: printable bytes stand for themselves, the others for letters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _from_letters(text: str) -> bytes:
    letters = _letters()
    return bytes(letters[letter] for letter in text) if all(letter in letters for letter in text) else text.encode()


def _plain(text: str) -> bytes:
    match = BYTE.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace(BLANK, " ").encode()
