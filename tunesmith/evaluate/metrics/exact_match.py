"""Share of answers that are the reference, character by character.

Blanks around the text do not count, nor does the way an accented letter is put together (Unicode NFC). Everything else
does: case, punctuation, the order of JSON keys.
"""

import unicodedata

from tunesmith.evaluate.scored import Scored, mean


def score(predictions: list[str], references: list[str]) -> Scored:
    return mean([float(_plain(ours) == _plain(theirs)) for ours, theirs in zip(predictions, references, strict=True)])


def suits(references: list[str]) -> bool:
    return True


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()
