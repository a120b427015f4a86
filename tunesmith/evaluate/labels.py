"""Labels in answers: what counts as one, and when references are labels at all."""

import unicodedata

MOST_LABELS = 200
LONGEST_LABEL = 60  # characters


def label(text: str) -> str:
    """Blanks around it and the case of its letters do not make another label."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def are_labels(references: list[str]) -> bool:
    """Few distinct short texts: at most 200, and at most half as many as there are rows."""
    distinct = {label(text) for text in references}
    return (
        bool(distinct)
        and len(distinct) <= min(MOST_LABELS, len(references) / 2)
        and all(0 < len(text) <= LONGEST_LABEL for text in distinct)
    )
