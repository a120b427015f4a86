"""What methods share that stand in front of a document (virtual tokens, prefixes): the text that they begin as, and the positions that
they take."""

from typing import Any

from tunesmith.errors import UserError
from tunesmith.methods.tuning import Start

# What is begun from where neither the user nor the task says anything.
SENTENCE = "Read the input with care, do what is asked and write nothing but the answer:"


def text_ids(start: Start, text: str, count: int) -> list[int]:
    """Ids of so many tokens: what the tokenizer puts in front of every text once, then the text, repeated or cut.

    An empty text stands for the task's sentence. Raises UserError for a text without tokens.
    """
    text = text or start.task or SENTENCE
    body: list[int] = start.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not body:
        raise UserError(f"method.text is {text!r}, which has no tokens; write a sentence about the task, or leave it out")
    whole: list[int] = start.tokenizer(text)["input_ids"]
    begin = next((whole[:at] for at in range(len(whole)) if whole[at : at + len(body)] == body), [])
    return (begin + body * count)[:count]


def check_room(model: Any, tokens: int) -> None:
    """Raises LookupError where so many positions leave none for a document."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit and tokens >= limit:
        raise LookupError(f"{tokens} positions in front leave no room: this model takes {limit}; lower method.tokens")
