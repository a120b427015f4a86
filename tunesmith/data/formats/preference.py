"""Preferences: an answer that was chosen and one that was rejected, or answers judged one by one.

    {"prompt": "Name a primary colour.", "chosen": "Red", "rejected": "Purple"}
    {"conversations": [{"from": "human", "value": "Name a primary colour."}],
     "chosen": {"from": "gpt", "value": "Red"}, "rejected": {"from": "gpt", "value": "Purple"}}
    {"messages": [{"role": "user", "content": "Name a primary colour."}, {"role": "assistant", "content": "Purple"}], "label": false}

Such rows are read and checked; nothing learns from them yet, and no rejected or bad answer is ever learned as a good one.
"""

import dataclasses
import re
from typing import Any

from tunesmith.data.fields import describe, judged, optional_text, parsed_list, required_text
from tunesmith.data.formats import alpaca, messages, prompt, sharegpt
from tunesmith.data.sample import Message, RowError, Sample

COLUMNS: tuple[str, ...] = ("prompt", "question", "instruction", "input", "system", "history", "conversations", "messages", "tools")
COLUMNS += ("chosen", "rejected", "chosen_messages", "rejected_messages", "completion", "output", "label", "kto_tag")
NEEDED = ("chosen", "rejected")

SIDES = {"chosen": ("chosen", "chosen_messages"), "rejected": ("rejected", "rejected_messages")}
ASKED = ("conversations", "messages", "prompt", "instruction", "question")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?= |\n|$)")
ANSWERED = (messages, sharegpt, prompt, alpaca)  # shapes whose answers are judged one by one


def recognises(columns: set[str], values: dict[str, Any]) -> bool:
    """Whether a row of these columns is meant this way."""
    sides = [any(name in columns for name in names) for names in SIDES.values()]
    if all(sides):
        return True
    if any(sides):
        return bool(columns & set(ASKED)) and not columns & {"completion", "output"}
    return judged(values) is not None and _answered(_without_judgement(values), columns) is not None


def to_sample(values: dict[str, Any], origin: str) -> Sample:
    """Raises RowError."""
    if not any(name in values for names in SIDES.values() for name in names):
        return _judged(values, origin)
    chosen, rejected = (_side(values, side) for side in SIDES)
    if isinstance(chosen, list) and isinstance(rejected, list) and _begins(chosen[0]) and _begins(rejected[0]):
        before, after, other = _parted(sharegpt.conversation_of(chosen, "chosen"), sharegpt.conversation_of(rejected, "rejected"))
        before = messages.with_system(before, optional_text(values, "system"), "chosen")
    else:
        before, turns = _before(values)
        after, other = _answer(chosen, "chosen", turns), _answer(rejected, "rejected", turns)
    if _said(after) == _said(other):
        raise RowError("'chosen' and 'rejected' are the same answer: there is no preference")
    fed = [message | {"learn": False} if message["role"] == "assistant" else message for message in before]
    for side, answer in (("chosen", after), ("rejected", other)):
        try:
            messages.check_turns([*fed, *answer])
        except RowError as error:
            raise RowError(f"with the {side} answer: {error}") from None
    return Sample(origin, (*fed, *after), messages.tools_of(values.get("tools")), rejected=tuple(other))


def _judged(values: dict[str, Any], origin: str) -> Sample:
    """An answer with a true or false label."""
    good = judged(values)
    if good is None:
        raise RowError(f"no 'chosen' and 'rejected', and no 'label' that is true or false (the row has {', '.join(map(str, values))})")
    rest = _without_judgement(values)
    shape = _answered(rest, set(rest))
    if shape is None:
        raise RowError(f"no answer that {'label'!r} could judge: it needs messages, or prompt and completion, or instruction and output")
    return dataclasses.replace(shape.to_sample(rest, origin), desirable=good)


def _answered(values: dict[str, Any], columns: set[str]) -> Any:
    return next((shape for shape in ANSWERED if shape.recognises(columns & set(values), values)), None)


def _without_judgement(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in ("label", "kto_tag")}


def _side(values: dict[str, Any], side: str) -> Any:
    """One side's answer: a text, a message or a list of messages. Raises RowError."""
    key = next((name for name in SIDES[side] if name in values), None)
    if key is None:
        raise RowError(f"no {side!r} (the row has {', '.join(map(str, values))}): a preference has a chosen and a rejected answer")
    value = values[key]
    if value is None or value == [] or value == {}:
        raise RowError(f"{key!r} is {'null' if value is None else 'empty'}: a preference has a chosen and a rejected answer")
    if isinstance(value, str):
        text = required_text(values, key, "a preference has a chosen and a rejected answer")
        return _transcript(text) if not any(values.get(name) for name in ASKED) else text
    if not isinstance(value, dict | list):
        raise RowError(f"{key!r} is {describe(value)}, not a text, a message or a list of messages")
    return value


def _transcript(text: str) -> Any:
    """The turns of a whole conversation in one text, as Anthropic's HH-RLHF has them; any other text as it is."""
    parts = TURN.split(text)
    if len(parts) < 5 or parts[0].strip():
        return text
    return [{"from": said, "value": value.strip()} for said, value in zip(parts[1::2], parts[2::2], strict=True)]


def _begins(turn: Any) -> bool:
    """Whether a turn asks, so that it begins a whole conversation."""
    said = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return isinstance(said, str) and sharegpt.ROLES.get(said.lower(), said.lower()) in ("user", "system", "developer")


def _parted(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """What two whole conversations share, and what each says then. Raises RowError."""
    if chosen == rejected:
        raise RowError("'chosen' and 'rejected' are the same conversation: there is no preference")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise RowError("'chosen' and 'rejected' are conversations that do not begin alike; a preference is two answers to one question")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _before(values: dict[str, Any]) -> tuple[list[Message], bool]:
    """What stands before both answers, and whether it was given as turns. Raises RowError."""
    key = next((key for key in ASKED if values.get(key)), None)
    if key is None:
        raise RowError(f"no question: there is none of {', '.join(ASKED)}")
    asked = parsed_list(values[key], key) if key in ("conversations", "messages") else values[key]
    if isinstance(asked, list):
        conversation = sharegpt.conversation_of(asked, key)
    else:
        question = alpaca.question_of(values) if key == "instruction" else required_text(values, key)
        conversation = [*alpaca.turns_before(values), {"role": "user", "content": question}]
    return messages.with_system(conversation, optional_text(values, "system"), key), isinstance(asked, list)


def _answer(value: Any, side: str, turns: bool) -> list[Message]:
    if isinstance(value, str):
        if turns:
            raise RowError(f"{side!r} is {describe(value)}, but the question is a list of turns; an answer is a turn there too")
        return [{"role": "assistant", "content": value}]
    answer = sharegpt.conversation_of(value if isinstance(value, list) else [value], side)
    if not any(message["role"] == "assistant" for message in answer):
        raise RowError(f"{side!r} holds no assistant message")
    return answer


def _said(answer: list[Message]) -> list[Any]:
    """What is compared: blanks around an answer do not make it another."""
    return [message | {"content": message["content"].strip()} for message in answer]
