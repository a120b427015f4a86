"""Text -> token ids, in which only the special tokens that a chat template writes itself are special.

A special token's characters inside somebody's message stay text: they are hidden behind private-use characters while
the template renders, and the rendered text is cut at the template's own special tokens before it is tokenised.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.sample import RowError

PLANES = (0xF0000, 0x100000)  # the private-use planes 15 and 16, of 65,534 characters each
LONG = 1_000_000  # characters; a longer plain text is tokenised in parts, since an encoding takes ~100 bytes a character

# A tokenizer is told anew for each text what special tokens are, and encodes in native code while other threads run: between the two
# another thread must not tell it otherwise (a server that takes in an adapter while it renders), or a message's text would be special.
ENCODING = threading.RLock()


@dataclass(frozen=True, slots=True)
class Marked:
    """A rendered text; `hidden` says which special token's characters each private-use character stands for."""

    text: str
    hidden: dict[str, str] = field(default_factory=dict)

    def part(self, start: int, end: int | None = None) -> "Marked":
        return Marked(self.text[start:end], self.hidden)

    def plain(self) -> str:
        """The text with the hidden characters in place again."""
        return restore(self.text, self.hidden)


def restore(text: str, hidden: dict[str, str]) -> str:
    for mark, special in hidden.items():
        # a template may write JSON in ASCII, and the mark with it
        text = text.replace(mark, special).replace(json.dumps(mark)[1:-1], special)
    return text


class Encoder:
    """A tokenizer's special tokens and the ways of tokenising a text around them."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids = {content: index for content, (index, _) in added.items()}
        for content in tokenizer.all_special_tokens:
            self.ids.setdefault(content, tokenizer.convert_tokens_to_ids(content))
        self._strips = {content: (token.lstrip, token.rstrip) for content, (_, token) in added.items()}
        self._lengths: dict[str, list[int]] = {}  # first character -> lengths of the special tokens that begin with it
        for content in self.ids:
            lengths = self._lengths.setdefault(content[0], [])
            if len(content) not in lengths:
                lengths.append(len(content))
                lengths.sort(reverse=True)
        self._first = re.compile("[" + "".join(map(re.escape, self._lengths)) + "]" if self._lengths else "(?!)")
        self._backend = _plain_backend(tokenizer)
        self._added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        # found in the text as it stands, wherever it stands, and leaving what stands before it alone
        bound = {content for content, (_, token) in added.items() if token.lstrip or token.single_word or token.normalized}
        self._plain = set(added) - bound if self._backend is not None else set()
        self._dividing = {"": False}  # what `divides` found
        # tokenizers of SentencePiece's kind put a blank before a text's first word
        self.adds_blank = self.batch(["\nx"])[0] != self.batch(["\n"])[0] + self.batch(["x"])[0]

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where special tokens stand in a text, the longest first where several begin. A vocabulary may have thousands."""
        end = 0
        for match in self._first.finditer(text):
            start = match.start()
            if start < end:
                continue
            for length in self._lengths[text[start]]:
                if text[start : start + length] in self.ids:
                    end = start + length
                    yield start, end
                    break

    def hide(self, *values: Any) -> tuple[list[Any], dict[str, str]]:
        """Messages and tools with the special tokens inside their strings hidden; keys and roles stay.

        Returns the values (untouched where nothing is hidden) and which private-use character stands for what.
        """
        found = {text[start:end] for text in _strings(values) for start, end in self.find(text)}
        if not found:
            return list(values), {}
        used = {character for text in _strings(values) for character in text if ord(character) >= PLANES[0]}
        for plane in PLANES:
            marks = {special: chr(plane + n) for n, special in enumerate(sorted(found))}
            if not used & set(marks.values()):
                return [self._hide(value, marks) for value in values], {mark: special for special, mark in marks.items()}
        raise RowError("it holds both special tokens and the private-use characters that would stand for them; take one kind out")

    def _hide(self, value: Any, marks: dict[str, str]) -> Any:
        if isinstance(value, str):
            pieces, at = [], 0
            for start, end in self.find(value):
                pieces += [value[at:start], marks[value[start:end]]]
                at = end
            return "".join(pieces) + value[at:]
        if isinstance(value, dict):
            return {key: item if key == "role" else self._hide(item, marks) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(item, marks) for item in value]
        return value

    def batch(self, texts: Sequence[str], *, split: bool = False) -> list[list[int]]:
        """Ids of each text, with nothing added. `split`: a special token's characters are text."""
        if not texts:
            return []
        if self._backend is not None:
            with ENCODING:
                self._backend.no_truncation()
                self._backend.no_padding()
                self._backend.encode_special_tokens = split
                return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        quiet = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        with ENCODING:
            kept = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=split, **quiet)
        return kept["input_ids"]

    def placed(self, texts: Sequence[str], *, split: bool = False) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """As `batch`, with the characters of its text that each token stands for; a token of blanks may have none."""
        if self._backend is not None and texts:
            with ENCODING:
                self._backend.no_truncation()
                self._backend.no_padding()
                self._backend.encode_special_tokens = split
                return [(each.ids, each.offsets) for each in self._backend.encode_batch(list(texts), add_special_tokens=False)]
        if self.tokenizer.is_fast and texts:
            how = {"add_special_tokens": False, "split_special_tokens": split, "return_offsets_mapping": True, "verbose": False}
            with ENCODING:
                kept = self.tokenizer(list(texts), **how)
            return list(zip(kept["input_ids"], kept["offset_mapping"], strict=True))
        return [(ids, self._found(text, ids)) for text, ids in zip(texts, self.batch(texts, split=split), strict=True)]

    def _found(self, text: str, ids: list[int]) -> list[tuple[int, int]]:
        """Where tokens end, by decoding ever more of them: for tokenizers that do not say it."""
        spans, begin, blank = [], 0, len(text) - len(text.lstrip())
        for said in self.decode([ids[: last + 1] for last in range(len(ids))]):
            whole = said.rstrip("\ufffd")  # bytes of a character that is not whole yet
            lost = blank if not said[:1].isspace() else 0  # a blank in front that decoding takes away
            end = min(len(text), max(begin, lost + len(whole) + (whole != said)))
            spans.append((begin, end))
            begin = end - (whole != said)
        return spans

    def decode(self, batch: Sequence[list[int]]) -> list[str]:
        """What each list of ids says, special tokens and all."""
        if not batch:
            return []
        if self._backend is not None:
            return self._backend.decode_batch(list(batch), skip_special_tokens=False)
        return self.tokenizer.batch_decode(list(batch), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode(self, texts: Sequence[Marked]) -> list[list[int]]:
        """Ids of rendered texts, exactly as a server has them."""
        plain = iter(self.batch([item.text for item in texts if not item.hidden]))
        return [self._encode_hidden(item) if item.hidden else next(plain) for item in texts]

    def _encode_hidden(self, item: Marked) -> list[int]:
        ids: list[int] = []
        at, strip = 0, False
        for start, end in [*self.find(item.text), (len(item.text), len(item.text))]:
            special = item.text[start:end]
            before, after = self._strips.get(special, (False, False))
            piece = item.text[at:start].lstrip() if strip else item.text[at:start]
            ids += self.text(restore(piece.rstrip() if before else piece, item.hidden), first=at == 0)
            if special:
                ids.append(self.ids[special])
            at, strip = end, after
        return ids

    def text(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of a text in which nothing is special. `first`: it begins the document (a blank may be put before it)."""
        if not text:
            return []
        if self.adds_blank and not first:
            border, ids = self.batch(["\n", "\n" + text], split=True)
            return ids[len(border) :] if ids[: len(border)] == border else self.batch([text], split=True)[0]
        if len(text) > LONG and not self.adds_blank:
            return [n for part in parts(text, LONG) for n in self.batch([part], split=True)[0]]
        return self.batch([text], split=True)[0]

    def swallows(self, text: str) -> bool:
        """Whether blanks behind a text would be lost: some role tokens (Phi-3's) take those that follow them along.

        The text begins with its last special token, or has none.
        """
        for start, end in self.find(text):
            return start == 0 and self._strips.get(text[:end], (False, False))[1] and not text[end:].strip()
        return False

    def divides(self, text: str, at: int) -> bool:
        """Whether what stands before `at` and what begins there, a special token, tokenise apart as they do together."""
        token = next((text[at : at + n] for n in self._lengths.get(text[at : at + 1], ()) if text[at : at + n] in self.ids), "")
        if token not in self._dividing:
            self._dividing[token] = token in self._plain and not any(token in other for other in self._added if other != token)
        return self._dividing[token]

    def last(self, text: str) -> int:
        """Where the last special token of a text begins; 0 where there is none."""
        end = len(text)
        while end > 0:
            start = max(text.rfind(first, 0, end) for first in self._lengths)
            if start < 0:
                return 0
            if any(text[start : start + length] in self.ids for length in self._lengths[text[start]]):
                return start
            end = start
        return 0

    def alone(self, answer: Marked) -> list[int]:
        """Ids of an answer that the prompt's last token would swallow the beginning of."""
        if not self.adds_blank:
            return self.encode([answer])[0]
        border, ids = self.encode([Marked("\n"), Marked("\n" + answer.text, answer.hidden)])
        return ids[len(border) :] if ids[: len(border)] == border else self.encode([answer])[0]


def _plain_backend(tokenizer: Any) -> Any:
    """The Rust tokenizer, where a call of the tokenizer is nothing but a call of it; asked without offsets it is 1.3 times as fast."""
    from transformers import PreTrainedTokenizerFast

    own = getattr(type(tokenizer), "_encode_plus", None)
    return tokenizer.backend_tokenizer if own is PreTrainedTokenizerFast._encode_plus else None


def parts(text: str, size: int) -> Iterator[str]:
    """A long text in parts of about `size` characters that tokenise as the whole does: cut after a single line end.

    Pre-tokenizers never join a line end with the word that follows it; where several blanks meet they may.
    """
    at = 0
    for match in re.finditer(r"(?<=\S)\n(?=\S)", text):
        if match.end() - at >= size:
            yield text[at : match.end()]
            at = match.end()
    if at < len(text):
        yield text[at:]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "role":
                yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
