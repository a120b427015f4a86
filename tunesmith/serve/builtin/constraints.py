"""Answers that keep to a schema, an expression, a list or a grammar: before each token, which words may come next.

llguidance walks the grammar and says so as one bit a word. What is ours: one table of words for each tokenizer, one compiled grammar
for each text, stop tokens only where the grammar may end, and sentences for what cannot be.

JSON is written on one line: at most one blank behind `,` and `:`, as `json.dumps` and most training data have it. Without a bound a
small model may write line ends until its tokens run out. A schema may say otherwise in its own `x-guidance`.
"""

import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from tunesmith.serve.ask import Constraint

KEPT = 64  # compiled grammars of a tokenizer that stay: clients send the same schema again and again
JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}  # both separators are expressions
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")  # that llguidance knows
VALUES = ("const", "enum", "default", "examples")  # of a schema, in which no schemas stand
MISSING = "this server cannot keep an answer to a schema or grammar: it needs llguidance; on its machine: pip install 'tunesmith[serve]'"
_tables: "weakref.WeakKeyDictionary[Any, _Table]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Matcher:
    """Where one answer stands in its grammar. Used by one thread at a time."""

    def __init__(self, walker: Any, stop_ids: Collection[int], words: int):
        """`walker` is an llguidance.LLMatcher of our own, `words` how many its mask covers."""
        self._walker = walker
        self._stop_ids = sorted(stop_ids)
        self._words = words
        self._ended = False

    @property
    def finished(self) -> bool:
        """Nothing can follow but a stop token."""
        return not self.trouble and (self._ended or self._walker.is_stopped())

    @property
    def trouble(self) -> str:
        """Why the grammar cannot go on (too complex, a token that it does not allow); "" where it can."""
        return f"the constraint cannot go on: {_reason(self._walker.get_error())}" if self._walker.is_error() else ""

    def mask(self, logits_V: torch.Tensor) -> None:
        """Words that may not come next become -inf, in place. Stop tokens stay where the grammar may end; ids beyond the tokenizer's
        words never do. In trouble, all go."""
        allowed_V = np.zeros(len(logits_V), dtype=bool)
        if not self.trouble:
            if not self.finished:
                bits = np.frombuffer(self._walker.compute_bitmask(), dtype=np.uint8)
                known = min(self._words, len(logits_V))
                allowed_V[:known] = np.unpackbits(bits, count=known, bitorder="little")
            ends = self.finished or self._walker.is_accepting()
            stops = [token for token in self._stop_ids if token < len(logits_V)]
            allowed_V[stops] = ends and not self.trouble  # computing a mask may run into a limit
        logits_V.masked_fill_(torch.from_numpy(~allowed_V).to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """The token that came. One that is not allowed leaves the matcher in trouble."""
        if token in self._stop_ids:
            self._ended = True
        else:
            self._walker.consume_token(token)


class _Table:
    """A tokenizer's words as llguidance has them, and the grammars compiled over them."""

    def __init__(self, tokenizer: Any, stop_ids: Collection[int]):
        import llguidance
        from tokenizers import Tokenizer

        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError("this model's tokenizer has no tokenizer.json, without which an answer cannot be kept to a schema or grammar")
        plain = Tokenizer.from_str(backend.to_str())  # a copy: the renderer sets truncation on the original
        plain.no_padding()
        plain.no_truncation()
        ends = sorted(stop_ids) or [tokenizer.eos_token_id]
        self.words = llguidance.LLTokenizer(plain.to_str(), eos_token=[end for end in ends if end is not None and end < len(tokenizer)])
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def walker(self, grammar: str) -> Any:
        """A fresh walk over a grammar. Raises ValueError with llguidance's reason."""
        import llguidance

        with self._lock:
            if first := self._compiled.get(grammar):
                self._compiled.move_to_end(grammar)
                return first.deep_copy()
        first = llguidance.LLMatcher(self.words, grammar, log_level=0)  # up to a second, and others need not wait for it
        if first.is_error():
            raise ValueError(_reason(first.get_error()))
        begun = first.deep_copy()
        bits = np.frombuffer(begun.compute_bitmask(), dtype=np.uint8)
        if begun.is_error() or not (bits.any() or begun.is_accepting()):  # a schema that is nothing but itself
            raise ValueError("no text at all would keep to it")
        with self._lock:
            self._compiled[grammar] = first
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return first.deep_copy()


def matcher_of(constraint: Constraint, tokenizer: Any, stop_ids: Collection[int]) -> Matcher:
    """The start of a walk. Raises ValueError with a sentence for a schema or grammar that cannot be served, for a tokenizer without
    tokenizer.json, and where llguidance is not installed. The first call for a tokenizer takes about a second."""
    try:
        grammar = grammar_of(constraint)
        table = _table(tokenizer, stop_ids)
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        walker = table.walker(grammar)
    except ValueError as error:
        raise ValueError(f"{_NAMES[constraint.kind]} cannot be served: {error}") from None
    return Matcher(walker, stop_ids, table.words.vocab_size)


_NAMES = {"json": "the JSON schema", "regex": "the regular expression", "choice": "the choice", "lark": "the grammar"}


def _table(tokenizer: Any, stop_ids: Collection[int]) -> _Table:
    with _lock:
        if tokenizer not in _tables:
            _tables[tokenizer] = _Table(tokenizer, stop_ids)
        return _tables[tokenizer]


def grammar_of(constraint: Constraint) -> str:
    """The grammar as llguidance takes it: Lark's text, or for a schema a JSON document. Raises ValueError, ImportError."""
    from llguidance import LLMatcher, regex_to_lark

    value = constraint.value
    match constraint.kind:
        case "json":
            if not isinstance(value, dict):
                raise ValueError("a JSON schema is an object")
            return LLMatcher.grammar_from_json_schema(_known_formats(value) or {"type": "object"}, defaults=JSON_STYLE)
        case "regex":
            if not isinstance(value, str):
                raise ValueError("a regular expression is a text")
            # \d is 0 to 9 here, as whoever writes an expression for an answer means it, not every script's digits
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(_unanchored(value), use_ascii='d')}/")
        case "choice":
            if not isinstance(value, list | tuple) or not value or not all(isinstance(text, str) and text for text in value):
                raise ValueError("a choice is a list of texts, none of them empty")
            return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in value))
        case "lark":
            if not isinstance(value, str):
                raise ValueError("a grammar is a text")
            return LLMatcher.grammar_from_lark(value)


def _known_formats(schema: Any) -> Any:
    """Without formats that llguidance does not know (password, byte ...): by the standard they are notes, and it refuses them."""
    if isinstance(schema, list):
        return [_known_formats(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if not (key == "format" and isinstance(part, str) and part not in FORMATS)}
    return {key: part if key in VALUES else _known_formats(part) for key, part in kept.items()}


def _unanchored(expression: str) -> str:
    """The whole answer has to match anyway; llguidance knows no ^ and $."""
    expression = expression.removeprefix("^")
    if expression.endswith("$"):
        before = expression[:-1]
        slashes = len(before) - len(before.rstrip("\\"))
        if slashes % 2 == 0:
            return before
    return expression


def _reason(text: str) -> str:
    """llguidance's one sentence, without the state of its parser and drawings of the place."""
    lines = [line.strip() for line in text.strip().splitlines()]
    named = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (named or lines or ["no reason given"])[0][:300]
