"""A conversation's turns -> the tokens of each prompt and of each answer, every text tokenised once.

A turn's prompt repeats all that came before it, so that tokenising prompt after prompt takes the square of a chat's length:

    prompt 1 ┃ answer 1
    prompt 1 ┃ answer 1 ┃ question 2 ┃ answer 2
    prompt 1 ┃ answer 1 ┃ question 2 ┃ answer 2 ┃ question 3 ┃ answer 3

No token reaches across a special token. So a text is cut in front of one, and of each prompt only what is new is tokenised:
from the stop token of the answer before on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.rendering.tokens import Encoder, Marked


@dataclass(frozen=True, slots=True)
class Turn:
    """What a server feeds and what should be answered, as rendered texts."""

    index: int  # of the message that answers
    prompt: Marked
    answer: Marked


@dataclass(frozen=True, slots=True)
class Tokens:
    """A turn's token ids."""

    prompt: list[int]  # as tokenising the whole prompt gives them
    answer: list[int]  # as they go on behind the prompt
    merges: bool  # tokenised at once, prompt and answer give other tokens across the border


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a prompt: from its last special token on, else all of it."""

    turn: Turn
    cut: int  # where it begins
    text: Marked
    ids: list[int]
    joint: list[int]  # ids of it and the answer, tokenised at once


def tokenise(encoder: Encoder, chats: Sequence[Sequence[Turn]]) -> list[list[Tokens]]:
    """Ids of each turn of each conversation; the texts of all are tokenised together."""
    ends = _ends(encoder, [turn for chat in chats for turn in chat])
    answers = iter([_answer(encoder, end) for end in ends])
    prompts = iter(_prompts(encoder, ends, [place for chat in chats for place in range(len(chat))]))
    return [[Tokens(next(prompts), *next(answers)) for _ in chat] for chat in chats]


def _ends(encoder: Encoder, turns: Sequence[Turn]) -> list[_End]:
    cuts = [encoder.last(turn.prompt.text) for turn in turns]
    texts = [turn.prompt.part(cut) for turn, cut in zip(turns, cuts, strict=True)]
    known = {_key(text): text for text in texts}  # few: most are an assistant's header
    ids = dict(zip(known, encoder.encode(list(known.values())), strict=True))
    joint = encoder.encode([Marked(text.text + turn.answer.text, text.hidden) for text, turn in zip(texts, turns, strict=True)])
    return [_End(turn, cut, text, ids[_key(text)], both) for turn, cut, text, both in zip(turns, cuts, texts, joint, strict=True)]


def _prompts(encoder: Encoder, ends: Sequence[_End], places: Sequence[int]) -> list[list[int]]:
    """Ids of all prompts. `places`: each turn's among its conversation's."""
    starts = [_start(encoder, ends[n - 1], end) if place else (0, []) for n, (end, place) in enumerate(zip(ends, places, strict=True))]
    whole = [not encoder.divides(end.turn.prompt.text, end.cut) for end in ends]
    pieces = [end.turn.prompt.part(start, None if uncut else end.cut) for end, (start, _), uncut in zip(ends, starts, whole, strict=True)]
    prompts: list[list[int]] = []
    head: list[int] = []  # ids of a prompt up to its end
    for ids, end, (start, between), uncut in zip(encoder.encode(pieces), ends, starts, whole, strict=True):
        head = [*head, *between, *ids] if start else ids
        prompts.append(head if uncut else head + end.ids)
    return prompts


def _start(encoder: Encoder, before: _End, now: _End) -> tuple[int, list[int]]:
    """Where in a prompt begins what the turn before did not hold, and the ids from that turn's end to there.

    0 where nothing is known: the template rewrites history, or no token divides the text.
    """
    prompt, earlier, answer = now.turn.prompt.text, before.turn.prompt.text, before.turn.answer.text
    same = prompt.startswith(earlier) and now.turn.prompt.hidden == before.turn.prompt.hidden
    if not same or not encoder.divides(prompt, before.cut):
        return 0, []
    stop = encoder.last(answer)
    ended = encoder.divides(answer, stop) and before.joint[-1:] == [encoder.ids.get(answer[stop:])]
    if ended and prompt.startswith(answer, len(earlier)):
        return len(earlier) + stop, before.joint[:-1]
    return before.cut, []


def _answer(encoder: Encoder, end: _End) -> tuple[list[int], bool]:
    """Ids of an answer as it goes on behind its prompt, and whether tokenising both at once gives others across the border."""
    answer = end.turn.answer
    same = end.joint[: len(end.ids)] == end.ids and not (answer.text[:1].isspace() and encoder.swallows(end.text.text))
    return (end.joint[len(end.ids) :] if same else encoder.alone(answer)), not same


def _key(text: Marked) -> tuple[str, tuple[tuple[str, str], ...]]:
    return text.text, tuple(sorted(text.hidden.items()))
