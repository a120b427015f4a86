"""Instructions and answers, as the Alpaca data sets have them.

    {"instruction": "Translate to French.", "input": "Good morning", "output": "Bonjour",
     "system": "You are a translator.", "history": [["Hello", "Salut"]]}

`input`, `system` and `history` may be absent, null or empty. The user's message is the instruction, and under it on a
new line the input. History holds earlier turns as [user, assistant] pairs; their answers are learned too.
"""

from typing import Any

from tunesmith.data.fields import describe, doubts, judged, optional_text, parsed_list, refuse_media, required_text
from tunesmith.data.formats import messages
from tunesmith.data.sample import Message, RowError, Sample

COLUMNS = ("instruction", "input", "output", "system", "history")
NEEDED = ("instruction", "output")


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    return set(NEEDED) <= columns and not {"chosen", "rejected"} & columns and judged(values) is None


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    messages.refuse_judged(values)
    refuse_media(values)
    question = question_of(values)
    answer = required_text(values, "output", "there is nothing to learn")
    conversation: list[Message] = []
    if system := optional_text(values, "system"):
        conversation.append({"role": "system", "content": system})
    conversation += [*turns_before(values), {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Sample(origin, tuple(conversation), notes=doubts(values))


def question_of(values: dict[str, Any]) -> str:
    """The instruction, and under it the input. Raises RowError."""
    instruction = required_text(values, "instruction", "name the column that holds the question by data.columns")
    context = optional_text(values, "input")
    return f"{instruction}\n{context}" if context else instruction


def turns_before(values: dict[str, Any]) -> list[Message]:
    """The turns of `history` as messages. Raises RowError."""
    turns: list[Message] = []
    for number, pair in enumerate(parsed_list(values.get("history"), "history"), start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"history turn {number} is {describe(pair)}; a turn is [user's text, assistant's text]")
        if not pair[0].strip() or not pair[1].strip():
            raise RowError(f"history turn {number} is blank on {'the user' if not pair[0].strip() else 'the assistant'}'s side")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns
