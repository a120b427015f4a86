"""Raw text to continue, for pretraining on a domain: every token is learned.

    {"text": "Anarchism is a political philosophy ..."}

A .txt or .md file is one such row, the whole file one document. Other columns (a title, a date, an address) do not
matter, but beside a column that looks like an answer or a label the row is not taken for raw text by itself.
"""

from typing import Any

from tunesmith.data.fields import required_text
from tunesmith.data.formats.labels import LABELS
from tunesmith.data.sample import Sample

COLUMNS = ("text",)
NEEDED = ("text",)

# Columns that say that `text` is a question rather than something to continue.
_ANSWERS = (
    "answer answers response output completion summary summaries highlights tags ner_tags entities spans slots relations "
    "instruction spam toxic toxicity hate sarcasm stance verdict grade prompt question messages conversations conversation "
    "chosen rejected chosen_messages rejected_messages kto_tag translation sql 答案 回答 输出 摘要"
)
ANSWERS = LABELS | frozenset(_ANSWERS.split())
BEGINNINGS = ("label", "gold_", "answer")


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    return "text" in columns and not any(name in ANSWERS or name.startswith(BEGINNINGS) for name in map(_lower, columns))


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    return Sample(origin, text=required_text(values, "text", "there is nothing to learn"))


def _lower(name: Any) -> str:
    return str(name).lower()
