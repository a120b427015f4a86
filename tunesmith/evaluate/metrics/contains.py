"""Share of answers in which the reference stands somewhere, whatever is said around it.

Case and the width of blanks do not count. It rewards long answers, so no run takes it by itself: name it
(`--metrics contains`) where the reference is a short fact.
"""

import unicodedata

from tunesmith.evaluate.scored import Scored, mean


def score(predictions: list[str], references: list[str]) -> Scored:
    return mean([float(_within(_plain(theirs), _plain(ours))) for ours, theirs in zip(predictions, references, strict=True)])


def suits(references: list[str]) -> bool:
    return False


def _within(reference: str, prediction: str) -> bool:
    return reference in prediction if reference else not prediction


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())
