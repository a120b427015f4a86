"""What a server that takes the model's own chat template feeds before an answer: made by `transformers`, not by our renderer.

vLLM, TGI and SGLang call the tokenizer's `apply_chat_template` on the messages of a request and tokenise the result, special
tokens in a message's text included. Where that gives other tokens than training did, the model is asked in a language that it
was not taught.
"""

import datetime
from dataclasses import dataclass

from tunesmith.data.rendering.answers import thought_and_spoken, without_thinking
from tunesmith.data.rendering.render import Renderer
from tunesmith.data.sample import Message, RowError, Sample


@dataclass(frozen=True, slots=True)
class Served:
    """The tokens in front of one answer."""

    message: int  # the answer's place in the conversation, from 0
    ids: list[int]
    how: str  # which program's way it is
    special: bool  # the messages hold special tokens, which other servers take for control tokens

    def reason(self, trained: list[int], renderer: Renderer, max_length: int) -> str:
        """Why `trained`, the tokens that stand before the answer in training, are others, as far as that can be told."""
        if renderer.prints_date and renderer.date != datetime.date.today().isoformat():
            return f"; the chat template prints the date, in training {renderer.date}, for a server today's"
        if self.special:
            return "; special tokens in the text are text in training, and control tokens for this server"
        if len(self.ids) > max_length or len(self.ids) > len(trained):
            return f"; the row was cut to data.max_length {max_length}"
        return ""


def served(sample: Sample, turn: int, renderer: Renderer) -> Served:
    """What is fed before message number `turn`. Raises RowError where the chat template refuses the messages."""
    messages = [_asked(message, renderer.thinking) for message in sample.messages[:turn]]
    tokenizer = renderer.tokenizer
    special = any(True for message in messages for _ in renderer.encoder.find(message["content"] or ""))
    if not tokenizer.chat_template:
        return Served(turn, renderer.prompt_ids(sample.messages[:turn], sample.tools), "no chat template", special)
    try:
        ids = tokenizer.apply_chat_template(
            messages, tools=list(sample.tools) or None, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # templates raise what they like
        raise RowError(f"the chat template refuses the messages before message {turn + 1}: {error}") from error
    return Served(turn, list(ids), "apply_chat_template", special)


def difference(a: list[int], b: list[int]) -> int | None:
    """Where two token sequences differ first; None where they are equal."""
    if a == b:
        return None
    return next((n for n, (left, right) in enumerate(zip(a, b, strict=False)) if left != right), min(len(a), len(b)))


def _asked(message: Message, thinking: str) -> Message:
    message = {key: value for key, value in message.items() if key != "learn"}
    if thinking == "keep" or message["role"] != "assistant":
        return message
    return without_thinking(message) | {"content": thought_and_spoken(message)[1]}
