"""How long the rows are, how much of them is learned, and what `data.on_overlength` does to those over `data.max_length`.

Without a model tokens are estimated: 4 ASCII characters a token, any other character one token, and 5 tokens a message for
the chat template. Measured with SmolLM2's vocabulary (49,152, English): English prose 4.0 to 4.6 characters a token, JSON
and arithmetic 2.8 to 3.8; Russian 1.0 token a character, Chinese and Japanese 1.9, Korean 2.9. Vocabularies of 100,000
and more with Chinese in them take about 0.65 tokens a Chinese character, so that the rule lies between.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.data.look.histogram import bins, edges
from tunesmith.data.look.places import Finding, Places, count
from tunesmith.data.sample import BadRow, Message, RowError, Sample

if TYPE_CHECKING:
    from tunesmith.data.rendering.render import Renderer

ASCII_CHARACTERS = 4  # a token
PER_MESSAGE = 5  # tokens of the chat template around a message
HOPELESS = 50  # times data.max_length: of a conversation so long less than a fiftieth is kept, and it counts as bad
RULE = "4 ASCII characters a token, any other character one token, 5 tokens a message; --model counts them"


@dataclass(frozen=True, slots=True)
class Limit:
    """`data.max_length`, in tokens, and `data.on_overlength`."""

    max_length: int = 1024
    on_overlength: str = "truncate"


@dataclass(frozen=True, slots=True)
class Length:
    """A row in tokens. `learned` and `all` are characters where tokens are estimated."""

    tokens: int
    learned: int
    all: int
    answer: int  # tokens of the longest learned answer
    answers: int  # how many are learned
    raw: bool  # raw text, which is split and loses nothing


Measure = Callable[[Sequence[Sample]], Sequence[Length | RowError]]


def estimated(samples: Sequence[Sample]) -> list[Length]:
    """Lengths by the rule of thumb."""
    return [_estimated(sample) for sample in samples]


def tokenised(renderer: "Renderer") -> Measure:
    """Lengths in tokens of the documents that training would make, chat template and all; a row may turn out to be unusable."""

    def measure(samples: Sequence[Sample]) -> list[Length | RowError]:
        return [
            found if isinstance(found, RowError) else _counted(sample, found)
            for sample, found in zip(samples, renderer.documents_of(samples), strict=True)
        ]

    return measure


def _counted(sample: Sample, documents: list[Any]) -> Length:
    spans = [end - start for document in documents for start, end in document.spans]
    longest = max(len(document.ids) for document in documents)
    whole = sum(len(document.ids) for document in documents)
    return Length(longest, sum(spans), whole, max(spans), len(spans), sample.text is not None)


def _estimated(sample: Sample) -> Length:
    if sample.text is not None:
        tokens = estimate(sample.text)
        return Length(tokens, len(sample.text), len(sample.text), tokens, 1, True)
    tokens = learned = everything = longest = answers = 0
    for message in sample.messages:
        text = words(message)
        here = estimate(text) + PER_MESSAGE
        tokens += here
        everything += len(text)
        if message["role"] == "assistant" and message.get("learn", True):
            learned += len(text)
            longest = max(longest, here)
            answers += 1
    tools = json.dumps(sample.tools, ensure_ascii=False) if sample.tools else ""
    return Length(tokens + estimate(tools), learned, everything + len(tools), longest, answers, False)


def words(message: Message) -> str:
    """All that a message says: its thinking, its text, its tool calls."""
    text = message["content"] or ""
    if thought := message.get("reasoning_content"):
        text = f"{thought}\n{text}"
    if calls := message.get("tool_calls"):
        text += json.dumps([call["function"] for call in calls], ensure_ascii=False)
    return text


def estimate(text: str) -> int:
    """About how many tokens a text has."""
    plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return -(-plain // ASCII_CHARACTERS) + len(text) - plain


@dataclass(slots=True)
class Lengths:
    """Counted while the rows of one file pass. Lengths from 1,000 up are kept to three digits, so that memory is bounded."""

    limit: Limit
    exact: bool  # counted with a tokenizer, not estimated
    rows: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    longest: int = 0
    learned: int = 0
    all: int = 0
    over: Places = field(default_factory=Places)
    fates: Counter[str] = field(default_factory=Counter)  # of the rows over max_length
    hopeless: list[BadRow] = field(default_factory=list)

    def add(self, row: int, line: int, sample: Sample, length: Length) -> None:
        """Count one row, or put it among the `hopeless` ones."""
        most = self.limit.max_length
        if length.tokens > HOPELESS * most and not length.raw:
            self.hopeless.append(BadRow(sample.origin.rpartition(":")[0], line, self._hopeless(length)))
            return
        self.rows[rounded(length.tokens)] += 1
        self.tokens += length.tokens
        self.longest = max(self.longest, length.tokens)
        self.learned += length.learned
        self.all += length.all
        if length.tokens > most:
            self.over.add(row, line)
            half = length.answer > most // 2
            self.fates["split" if length.raw else "turns" if length.answers > 1 else "end" if half else "middle"] += 1

    @property
    def unit(self) -> str:
        return "tokens" if self.exact else "tokens, estimated"

    def percentile(self, share: float) -> int:
        """The length that this share of the rows does not exceed; 0 without rows."""
        left = share * self.rows.total()
        for length in sorted(self.rows):
            left -= self.rows[length]
            if left <= 0:
                return min(length, self.longest)  # rounding may have gone up
        return 0

    def _hopeless(self, length: Length) -> str:
        most = self.limit.max_length
        size = f"{'' if self.exact else 'about '}{length.tokens:,} tokens, {length.tokens / most:,.0f} times data.max_length {most:,}"
        return f"{size}: {self._left(length)}; shorten it, cut it into several rows, or raise data.max_length"

    def _left(self, length: Length) -> str:
        most = self.limit.max_length
        kept = f"data.on_overlength=truncate would leave {most / length.tokens:.1%} of it"
        if self.limit.on_overlength != "truncate":
            kept = f"data.on_overlength={self.limit.on_overlength} would not learn it, and {kept.partition('=')[2]}"
        if length.answers > 1:
            return f"{kept}, the first turns that fit"
        if length.answer > most // 2:
            return f"{kept}, the first {most // 2:,} tokens or more of an answer of {length.answer:,}, without its end"
        return f"{kept}, the answer and the beginning and the end of what stands before it"

    def findings(self) -> list[Finding]:
        """What becomes of rows that are too long, in one sentence."""
        if not self.over.count:
            return []
        about = "" if self.exact else "about "
        what = f"{count(self.over.count, 'row')} over data.max_length {self.limit.max_length:,} (longest {about}{self.longest:,} tokens)"
        return [Finding(what, self.over, f"; {self._fate()}")]

    def _fate(self) -> str:
        mode, fates, rows = self.limit.on_overlength, self.fates, self.over.count
        if mode in ("drop", "error"):
            does = "leaves them out" if mode == "drop" else "stops the run at them"
            return f"data.on_overlength={mode} {does}"
        sides = [("split", "nothing is lost: raw text is split")]
        if mode == "truncate":
            sides += [
                ("middle", "the answer stays whole and the prompt loses its middle"),
                ("end", f"an answer of more than {self.limit.max_length // 2:,} tokens loses its end and its stop token"),
                ("turns", "the first answers that fit are learned, the later ones go"),
            ]
        parts = [f"in {fates[side]:,} {happens}" for side, happens in sides if fates[side]]
        if mode == "split" and rows > fates["split"]:
            parts.append(f"{rows - fates['split']:,} stop the run: conversations are not split, take truncate or drop")
        return f"data.on_overlength={mode}: " + "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """`lengths`, `learned` and `histogram`."""
        total = self.rows.total()
        borders = edges(self.longest, self.limit.max_length)
        return {
            "lengths": {
                "unit": self.unit,
                **({} if self.exact else {"rule": RULE}),
                "sum": self.tokens,
                "mean": round(self.tokens / total, 1) if total else 0,
                **{f"p{share}": self.percentile(share / 100) for share in (50, 90, 99)},
                "longest": self.longest,
                "max_length": self.limit.max_length,
                "over": {"rows": self.over.count, "lines": self.over.ranges(), "longer_than_half_answers": self.fates["end"]},
            },
            "learned": {
                "unit": "tokens" if self.exact else "characters",
                "learned": self.learned,
                "all": self.all,
                "share": round(self.learned / self.all, 4) if self.all else 0,
            },
            "histogram": {"edges": borders, "counts": bins(self.rows, borders)},
        }


def rounded(length: int) -> int:
    """To three digits."""
    unit = 10 ** max(0, len(str(length)) - 3)
    return length if unit == 1 else round(length / unit) * unit
