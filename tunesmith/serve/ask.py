"""What a server asks an engine for, and what comes back: the few records between the HTTP side and whatever computes.

    messages ── renderer ──► Ask (token ids) ──► Engine ──► Token, Token, ... End ──► text

An engine sees token ids alone. They are those of the renderer that the model was trained with, so that all engines are fed the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be: JSON of a schema, a regular expression's text, one of some texts, or a grammar's (Lark, as llguidance
    reads it)."""

    kind: Literal["json", "regex", "choice", "lark"]
    value: Any  # json: the schema, {} for any object; regex, lark: a text; choice: a list of texts


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted. Temperature 0 takes the likeliest token; top_p 1, top_k 0 and min_p 0 cut nothing."""

    model: str  # a name in the catalog; the engine has it, or `submit` raises LookupError
    prompt_ids: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int]  # tokens that end the answer; they are not part of it
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int = -1  # -1: none; otherwise of the chosen token and of so many of the likeliest
    min_tokens: int = 0  # stop tokens are not drawn before
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer, with natural logarithms of probabilities under the model's own softmax, before any cut or temperature."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """The last thing that comes, once. `stop`: a stop token, or the constraint was complete; `length`: the limit; `cancelled`;
    `error`: this answer failed, the engine lives, `message` says why."""

    reason: Literal["stop", "length", "cancelled", "error"]
    message: str = ""


Put = Callable[[Token | End], None]  # called from the engine's thread; must not wait
Cancel = Callable[[], None]  # may be called from any thread, at any time, more than once


class Full(Exception):
    """The queue is full: try again later (HTTP 429)."""


class Engine(Protocol):
    """What computes answers. Methods may be called from any thread."""

    name: str

    def submit(self, ask: Ask, put: Put) -> Cancel:
        """Take an answer on. Raises LookupError for an unknown model, Full, and ValueError with a sentence for what this engine, or
        the model's context, cannot do."""
        ...

    def context(self, model: str) -> int | None:
        """How many tokens prompt and answer may have together; None where there is no limit."""
        ...

    def load(self, name: str, folder: Any) -> None:
        """Let an adapter folder answer under a name from now on; one of the same name is exchanged, its answers in flight end with
        the old one. Raises UserError for what does not fit the base."""
        ...

    def unload(self, name: str) -> None:
        """Forget it; answers in flight end. Raises LookupError."""
        ...

    def figures(self) -> dict[str, float]:
        """Gauges and counters by name, for the metrics page: running, waiting, cache_tokens, cache_tokens_limit, adapters_in_memory ..."""
        ...

    def close(self, patience: float) -> None:
        """Take nothing on any more, let answers in flight end for so many seconds, then cancel the rest."""
        ...
