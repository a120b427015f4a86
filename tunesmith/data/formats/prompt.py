"""A prompt and its completion.

    {"prompt": "Name a primary colour.", "completion": "Red", "system": "Answer with one word."}
    {"prompt": [{"role": "user", "content": "Name a primary colour."}], "completion": [{"role": "assistant", "content": "Red"}]}

As texts they become one user message and one assistant message, in the model's own chat template. As lists of messages
(of OpenAI's shape or ShareGPT's; a completion may be one message) they are joined; only the completion is learned, also
where the prompt holds earlier answers. `system` and `tools` may be absent. Rows of any other shape become this one by
`data.columns` and `data.prompt`.
"""

from typing import Any

from tunesmith.data.fields import describe, doubts, judged, optional_text, refuse_media, required_text
from tunesmith.data.formats import messages, sharegpt
from tunesmith.data.sample import Message, RowError, Sample

COLUMNS = ("prompt", "completion", "system", "tools")
NEEDED = ("prompt", "completion")


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    return set(NEEDED) <= columns and not {"chosen", "rejected"} & columns and judged(values) is None


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    messages.refuse_judged(values)
    refuse_media(values)
    if isinstance(values.get("completion"), dict):
        values = values | {"completion": [values["completion"]]}
    if isinstance(values.get("prompt"), list) or isinstance(values.get("completion"), list):
        conversation = _joined(values)
    else:
        question = required_text(values, "prompt")
        answer = required_text(values, "completion", "there is nothing to learn")
        conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    conversation = messages.with_system(conversation, optional_text(values, "system"), "prompt")
    messages.check_turns(conversation)
    return Sample(origin, tuple(conversation), messages.tools_of(values.get("tools")), notes=doubts(values))


def _joined(values: dict[str, Any]) -> list[Message]:
    for key in ("prompt", "completion"):
        if not isinstance(values.get(key), list):
            raise RowError(
                f"{key!r} is {describe(values.get(key))}, but the other side is a list of messages; both are texts or both are lists"
            )
        if not values[key]:
            raise RowError(f"{key!r} is an empty list")
    before = sharegpt.conversation_of(values["prompt"], "prompt")
    after = sharegpt.conversation_of(values["completion"], "completion")
    if not any(message["role"] == "assistant" for message in after):
        raise RowError("'completion' holds no assistant message: there is nothing to learn")
    return [message | {"learn": False} if message["role"] == "assistant" else message for message in before] + after
