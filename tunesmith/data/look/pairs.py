"""Preference pairs: where the two answers begin, and the conversation that ends with the rejected one."""

from dataclasses import replace

from tunesmith.data.sample import Message, Sample


def parted(pair: Sample) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """(what stands before both answers, the chosen answer). Earlier answers are history: they are not learned."""
    begin = next((n for n, message in enumerate(pair.messages) if message["role"] == "assistant" and message.get("learn", True)), -1)
    return pair.messages[:begin], pair.messages[begin:]


def with_rejected(pair: Sample) -> Sample:
    """The same conversation ending with the rejected answer."""
    return replace(pair, messages=parted(pair)[0] + pair.rejected, rejected=())
