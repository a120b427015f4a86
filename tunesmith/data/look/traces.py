"""What the texts of a file show: characters decoded wrongly once, placeholders left in, control strings, HTML left over."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.files.encoding import unmangle
from tunesmith.data.look.places import Finding, Places, count
from tunesmith.data.sample import Sample

MANGLED = re.compile("[\u00c2-\u00f4][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]")
PLACEHOLDER = re.compile(r"\{\{\s*\w[\w.]*\s*\}\}|\{%[^%\n]{1,80}%\}")
# Control strings of the usual model families. <think> is none: it is how answers write their thinking.
MARKER = re.compile(
    r"<\|[\w.-]{1,40}\|>|<\uff5c[^\uff5c<>\s]{1,40}\uff5c>|</?s>|<(?:bos|eos|pad|unk|mask|sep|cls)>|<(?:start|end)_of_(?:turn|image)>"
    r"|</?tool_(?:call|response)>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<</?SYS>>"
    r"|\[(?:BOS|EOS|PAD|UNK|CLS|SEP|MASK|gMASK|sMASK)\]|<(?:sop|eop)>"
)
NAMES = "lt|gt|amp|quot|apos|nbsp|copy|reg|hellip|mdash|ndash|lsquo|rsquo|ldquo|rdquo|euro|middot|bull|times|deg"
ENTITY = re.compile(rf"&(?:{NAMES}|#\d{{2,6}}|#x[0-9A-Fa-f]{{2,6}});|(?<![\w&])#\d{{2,5}};|&?\b(?:{NAMES});(?=\S*[&/])")
LOST = "\ufffd"
NAMED = 5

Find = Callable[[str], Iterator[tuple[int, int]]]


@dataclass(slots=True)
class Kind:
    """One kind of trace: in which rows, how often, what it looks like."""

    where: Places = field(default_factory=Places)
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, row: int, line: int, seen: list[str]) -> None:
        if not seen:
            return
        self.where.add(row, line)
        for text in seen:
            if text in self.seen or len(self.seen) < 1000:
                self.seen[text] += 1

    def named(self) -> str:
        shown = ", ".join(f"{text} {number:,}" for text, number in self.seen.most_common(NAMED))
        return shown + (" ..." if len(self.seen) > NAMED else "")


@dataclass(slots=True)
class Traces:
    """Counted while the rows of one file pass. `special` finds a tokenizer's own special tokens in a text."""

    special: Find | None = None
    mangled: Kind = field(default_factory=Kind)
    lost: Kind = field(default_factory=Kind)
    placeholders: Kind = field(default_factory=Kind)
    markers: Kind = field(default_factory=Kind)
    entities: Kind = field(default_factory=Kind)
    empty_system: Kind = field(default_factory=Kind)

    def add(self, row: int, line: int, sample: Sample, text: str, answer: str) -> None:
        """`text`: all that the row says; `answer`: what of it is its last answer."""
        if not text.isascii():
            self._add_decoding(row, line, text)
        if "{{" in answer or "{%" in answer:
            self.placeholders.add(row, line, PLACEHOLDER.findall(answer))
        if "<" in text or "[" in text:
            self.markers.add(row, line, MARKER.findall(text))
        if self.special is not None:
            own = [text[start:end] for start, end in self.special(text)]
            self.markers.add(row, line, [token for token in own if not MARKER.fullmatch(token)])
        if ";" in text and ("&" in text or "#" in text):
            self.entities.add(row, line, ENTITY.findall(text))
        if sample.messages and sample.messages[0]["role"] == "system" and not sample.messages[0]["content"].strip():
            self.empty_system.add(row, line, ["empty"])

    def _add_decoding(self, row: int, line: int, text: str) -> None:
        if MANGLED.search(text):
            parts = [part for part in text.split("\n") if MANGLED.search(part) and unmangle(part)]
            self.mangled.add(row, line, [MANGLED.findall(part)[0] for part in parts])
        if LOST in text:
            self.lost.add(row, line, [LOST])

    def findings(self) -> list[Finding]:
        """What is worth saying."""
        sentences = (
            (
                self.mangled,
                lambda rows: (
                    f"{count(rows, 'row')} of mangled text (UTF-8 once read as Latin-1, such as {next(iter(self.mangled.seen))!r})"
                ),
                "",
            ),
            (self.lost, lambda rows: f"{count(rows, 'row')} with {LOST}, where a character was lost before the file was written", ""),
            (
                self.placeholders,
                lambda rows: (
                    f"{count(rows, 'answer')} with a placeholder ({_names(self.placeholders)}), which would be learned as it stands"
                ),
                "",
            ),
            (
                self.markers,
                lambda rows: f"{count(rows, 'row')} with control strings of models or chat templates in the text ({self.markers.named()})",
                "; they stay text here and never become control tokens, other trainers and servers may read them as such",
            ),
            (
                self.entities,
                lambda rows: f"{count(rows, 'row')} with HTML entities ({self.entities.named()})",
                "; nothing is changed: replace them in the file where they are left over from a web page",
            ),
            (
                self.empty_system,
                lambda rows: f"{count(rows, 'row')} with an empty system prompt",
                "; with many chat templates that is not the same as none: leave the message out",
            ),
        )
        return [Finding(what(kind.where.count), kind.where, then) for kind, what, then in sentences if kind.where.count]

    def as_json(self) -> dict[str, Any]:
        """Rows, lines and what was seen, by kind of trace."""
        kinds = {"mangled": self.mangled, "lost": self.lost, "placeholders": self.placeholders, "markers": self.markers}
        kinds |= {"entities": self.entities, "empty_system": self.empty_system}
        return {
            name: {"rows": kind.where.count, "lines": kind.where.ranges(), "seen": dict(kind.seen.most_common(20))}
            for name, kind in kinds.items()
            if kind.where.count
        }


def _names(kind: Kind) -> str:
    return ", ".join(list(kind.seen)[:NAMED])
