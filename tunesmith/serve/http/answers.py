"""An engine's tokens -> the pieces of an answer that a client gets: thinking, content, tool calls, each with its tokens' probabilities.

    Token ──► text ──► thinking | spoken ──► calls | said ──► stop texts ──► Piece

Every stage holds back what it cannot tell yet; nothing that went out is ever taken back, save a call whose arguments turn out to be no
JSON, and that only where the answer is sent whole.
"""

import math
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.serve.ask import End, Token
from tunesmith.serve.http.calls import Calls, Event
from tunesmith.serve.http.reading import FIRST_MARK, Reading
from tunesmith.serve.http.text import Growing, Stops, Vocabulary
from tunesmith.serve.http.thinking import Part, Thinking

MARKS = {code: None for code in range(FIRST_MARK, FIRST_MARK + 0x800)}  # for str.translate: special tokens are no text
LOWEST = -9999.0  # OpenAI's number for a token that cannot come; JSON knows no infinity
LETTERS = string.ascii_letters + string.digits


@dataclass(slots=True)
class Piece:
    """A part of an answer. `call`: an `index` that was not there before, with `id` and the name as text; `arguments`: more of that
    call's; `broken`: that call is no call, and `text` is what the model wrote."""

    kind: Literal["thought", "content", "call", "arguments", "broken"]
    text: str = ""
    index: int = 0
    id: str = ""
    tokens: list[Token] = field(default_factory=list)  # that this piece ends with, for logprobs


class Answer:
    """One answer, token by token. Once `finish` is set nothing more may be added: the engine's work on it can be stopped."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        reading: Reading | None = None,
        opened: bool = False,
        names: Collection[str] = (),
        stops: Sequence[str] = (),
        one_call: bool = False,
        fresh: bool = True,
    ):
        """`reading`: how thinking is told from speech; None: all of it is content. `names`: the functions that may be called, none for
        no calls. `opened`: the prompt ends inside the thinking. `one_call`: the answer ends with its first call. `fresh` as Growing's."""
        self._growing = Growing(vocabulary, reading.marks if reading else {}, fresh=fresh)
        self._thinking = Thinking(reading.thought, opened=opened) if reading else None
        self._calls = Calls(reading.form, names) if reading and reading.form and names else None
        self._stops = Stops(stops)
        self._nine = bool(reading and reading.nine)
        self._one_call = one_call
        self._came, self._waiting = 0, list[tuple[int, Token]]()  # characters so far; tokens whose text is not out, with where it begins
        self._spoken = self._thinks = False
        self._silent = 0  # tokens before anything was spoken
        self.tokens = self.calls = 0
        self.finish: Literal["", "stop", "length", "tool_calls"] = ""

    def add(self, token: Token) -> list[Piece]:
        self.tokens += 1
        self._silent += not self._spoken
        self._waiting.append((self._came, token))
        return self._with_tokens(self._text(self._growing.add(token.id)))

    def end(self, end: End) -> list[Piece]:
        """`end` is a stop or the limit."""
        pieces = self._text(self._growing.end())
        if self._thinking:
            pieces += self._parts(self._thinking.end())
        if self._calls and not self.finish:
            pieces += self._events(self._calls.end(cut=end.reason == "length"))
        if not self.finish:
            pieces += self._content(self._stops.end(), flush=True)
        if not self.finish:
            self.finish = "length" if end.reason == "length" else "tool_calls" if self.calls else "stop"
        return self._with_tokens(pieces, last=self._stops.cut < 0)

    @property
    def thoughts(self) -> int:
        """Tokens of its thinking."""
        return self._silent if self._thinks else 0

    # --- stages ---

    def _text(self, text: str) -> list[Piece]:
        self._came += len(text)
        return self._parts(self._thinking.add(text)) if self._thinking else self._content(text)

    def _parts(self, parts: list[Part]) -> list[Piece]:
        pieces: list[Piece] = []
        for kind, text in parts:
            if kind == "thought":
                self._thinks = True
                pieces.append(Piece("thought", text.translate(MARKS)))
            elif not self.finish:
                self._spoken = True
                pieces += self._say(text)
        return pieces

    def _say(self, text: str) -> list[Piece]:
        return self._events(self._calls.add(text)) if self._calls else self._content(text)

    def _events(self, events: list[Event]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if self.finish:
                break
            match event.kind:
                case "said":
                    pieces += self._content(event.text)
                case "call":
                    pieces += self._content(self._stops.end(), flush=True)
                    self.calls += 1
                    pieces.append(Piece("call", event.text, self.calls - 1, self._id()))
                case "arguments":
                    pieces.append(Piece("arguments", event.text, self.calls - 1))
                case "broken":
                    pieces.append(Piece("broken", event.text.translate(MARKS), self.calls - 1))
                case "done" if self._one_call:
                    self.finish = "tool_calls"
        return pieces

    def _content(self, text: str, *, flush: bool = False) -> list[Piece]:
        text = text.translate(MARKS)
        if not flush:
            text = self._stops.add(text)
            if self._stops.cut >= 0:
                self.finish = "stop"
        return [Piece("content", text)] if text else []

    def _id(self) -> str:
        """Mistral's templates take ids of nine letters or digits only, and this one comes back in the next request."""
        return "".join(secrets.choice(LETTERS) for _ in range(9)) if self._nine else f"call_{secrets.token_hex(12)}"

    # --- logprobs ---

    def _with_tokens(self, pieces: list[Piece], *, last: bool = False) -> list[Piece]:
        """Give the tokens whose text is out to the last piece. Behind a stop text those are left out that begin in it or behind it."""
        held = self._stops.held + (self._calls.held if self._calls else 0) + (self._thinking.held if self._thinking else 0)
        if self._stops.cut >= 0:
            held += self._stops.cut
        whole = last or not (held or self._growing.waits)
        out = [token for start, token in self._waiting if whole or start < self._came - held]
        self._waiting = [(start, token) for start, token in self._waiting if not whole and start >= self._came - held]
        if out:
            if not pieces:
                pieces = [Piece("content")]
            pieces[-1].tokens = out
        return pieces


def chat_logprobs(vocabulary: Vocabulary, tokens: Sequence[Token], top: int) -> list[dict[str, Any]]:
    """Entries as chat completions have them."""
    return [
        _entry(vocabulary, token.id, token.logprob) | {"top_logprobs": [_entry(vocabulary, *each) for each in token.top[:top]]}
        for token in tokens
    ]


def _entry(vocabulary: Vocabulary, token: int, logprob: float | None) -> dict[str, Any]:
    spelled = vocabulary.bytes_of(token)
    return {"token": spelled.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(spelled)}


def finite(logprob: float | None) -> float:
    return LOWEST if logprob is None or not math.isfinite(logprob) else logprob
