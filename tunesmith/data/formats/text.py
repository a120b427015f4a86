"""Raw text to continue, for pretraining on a domain: every token is learned.

    {"text": "Anarchism is a political philosophy ..."}

A .txt or .md file is one such row, the whole file one document. Other columns (a title, a date, an address) do not
matter, but beside a column that looks like an answer or a label the row is not taken for raw text by itself.
"""

from typing import Any

from tunesmith.data.fields import required_text
from tunesmith.data.sample import Sample

COLUMNS = ("text",)
NEEDED = ("text",)

# Columns that say that `text` is a question rather than something to continue.
ANSWERS = {
    "label",
    "labels",
    "category",
    "categories",
    "class",
    "intent",
    "sentiment",
    "target",
    "answer",
    "response",
    "output",
    "completion",
}
ANSWERS |= {
    "summary",
    "tags",
    "ner_tags",
    "entities",
    "rating",
    "stars",
    "instruction",
    "prompt",
    "question",
    "messages",
    "conversations",
    "chosen",
}


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    return "text" in columns and not {str(name).lower() for name in columns} & ANSWERS


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    return Sample(origin, text=required_text(values, "text", "there is nothing to learn"))
