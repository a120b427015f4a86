"""What the rows of a file begin with in common, such as one long system prompt: training computes it once a step.

Some rows are kept, spread evenly over the file and cut, so that memory is bounded: at most 32 MB.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.look.lengths import PER_MESSAGE, estimate, words
from tunesmith.data.look.places import count
from tunesmith.data.sample import Sample

KEPT = 1000  # rows at least, of a file that has as many, and at most twice as many
LONGEST = 4000  # characters kept of a row
SHARE = 0.02  # of all kept characters that a beginning takes at least, where it is told
NAMED = 5  # beginnings in the JSON document
PREVIEW = 60  # characters
BORDER = "\x1e"  # between messages


@dataclass(slots=True)
class Begun:
    """Counted while the rows of one file pass."""

    texts: list[str] = field(default_factory=list)
    every: int = 1  # of so many rows one is kept
    seen: int = 0

    def add(self, sample: Sample) -> None:
        if self.seen % self.every == 0:
            self.texts.append(_text(sample)[:LONGEST])
            if len(self.texts) == 2 * KEPT:
                del self.texts[1::2]
                self.every *= 2
        self.seen += 1

    def found(self) -> list[tuple[int, str]]:
        """(about how many rows, what they begin with), what takes most first."""
        import numpy as np

        from tunesmith.data.corpus.sharing import LEAST, largest

        written = [text for text in self.texts if text]
        sequences = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32) for text in written]
        scale = self.seen / max(1, len(self.texts))
        begun = [(round(rows * scale), written[first][:end]) for rows, first, end in largest(sequences, SHARE, len(sequences))]
        return [(rows, text) for rows, text in begun if estimate(text) >= LEAST][:NAMED]

    def said(self) -> str:
        """The largest beginning in a sentence, or an empty text."""
        found = self.found()
        if not found:
            return ""
        rows, text = found[0]
        about, more = "about " if self.every > 1 else "", f"; {count(len(found) - 1, 'more beginning')} in --json" if found[1:] else ""
        longest = " or more" if len(text) == LONGEST else ""
        return (
            f"{about}{rows:,} rows begin with the same {len(text):,}{longest} characters (about {_tokens(text):,} tokens, "
            f"{_shown(text)!r}), which training computes once a step (data.share_prefixes){more}"
        )

    def as_json(self) -> list[dict[str, Any]]:
        """`beginnings`."""
        return [
            {"rows": rows, "characters": len(text), "tokens_estimated": _tokens(text), "text": _shown(text)} for rows, text in self.found()
        ]


def _text(sample: Sample) -> str:
    """All of a row in the order in which a chat template writes it; preference pairs and labelled texts too."""
    if sample.text is not None:
        return sample.text
    tools = json.dumps(sample.tools, ensure_ascii=False) + BORDER if sample.tools else ""
    return tools + BORDER.join(f"{message['role']}: {words(message)}" for message in sample.messages)


def _tokens(text: str) -> int:
    return estimate(text) + PER_MESSAGE * (text.count(BORDER) + 1)


def _shown(text: str) -> str:
    shown = re.sub(r"\s+", " ", text.replace(BORDER, " "))
    return shown[:PREVIEW].rstrip() + ("..." if len(shown) > PREVIEW else "")
