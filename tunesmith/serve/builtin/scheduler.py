"""Which answers are computed next, and how many tokens of each: made anew before every step.

    queue ──► running, oldest first ──► a step: one token of every answer that goes on, and stretches of prompts while there is room

Prompts are computed in stretches, so that answers in flight never wait for a whole one. When the cache is full the newest answer goes
back to the front of the queue: what it has said stays said, and is computed again as part of its prompt. After that nobody is let in
until somebody leaves, or answers would push each other out for ever.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tunesmith.serve.ask import Ask, Put
from tunesmith.serve.builtin.beginnings import LEAST, common_length
from tunesmith.serve.builtin.cache import Cache, Room

AHEAD = 32  # tokens of an answer that its first row has room for
LEAST_OF_PROMPTS = 16  # tokens of prompts in a step, however many answers go on

Prefix = Mapping[int, tuple[Tensor, Tensor]]  # layer -> keys and values [K, P, E]


@dataclass(eq=False, slots=True)
class Answer:
    """One answer in the queue or in flight. `fed` is all that the model reads: virtual tokens, the prompt, and what was answered."""

    ask: Ask
    put: Put
    choice: Any  # sampling.Choice
    adapter: str  # its name in `Mixed`; "" is the base
    fed: list[int]
    before: int  # positions of a prefix in front
    most: int  # tokens that it may have
    leave: Callable[[], None]  # called once, at its end
    taken: int = 0
    room: Room | None = None
    begun: bool = False  # its row holds what stands in front, or the beginning of another's
    cancelled: bool = False  # may be set from any thread
    _ids: np.ndarray | None = None

    @property
    def computed(self) -> int:
        """Tokens of `fed` whose keys and values are cached."""
        return 0 if self.room is None or not self.begun else self.room.length - self.before

    @property
    def left(self) -> int:
        return len(self.fed) - self.computed

    @property
    def ids(self) -> np.ndarray:
        """`fed` as it was when it was first asked for since the answer was let in."""
        if self._ids is None:
            self._ids = np.asarray(self.fed)
        return self._ids


@dataclass(frozen=True, slots=True)
class Part:
    """What a step computes of one answer: its next `count` tokens."""

    answer: Answer
    count: int

    @property
    def wants(self) -> bool:
        """Whether the token behind it is to be chosen."""
        return self.count == self.answer.left


@dataclass(eq=False, slots=True)
class Scheduler:
    """For the engine's thread alone."""

    cache: Cache
    prefix: Callable[[str], Prefix]
    max_answers: int
    step_tokens: int
    waiting: deque[Answer] = field(default_factory=deque)
    running: list[Answer] = field(default_factory=list)  # in the order in which they were let in
    preempted: int = 0
    shared_tokens: int = 0  # of prompts, not computed since others had computed them
    _pressed: bool = False  # somebody was put back, and nobody has left since

    def plan(self) -> list[Part]:
        """The next step. Empty only where nothing is running or waiting."""
        self.cache.compact()
        self._let_grow()
        self._admit()
        singles = sum(answer.begun and answer.left == 1 for answer in self.running)
        spare = max(self.step_tokens - singles, LEAST_OF_PROMPTS)
        parts: list[Part] = []
        for answer in self.running:
            if answer.begun and answer.left == 1:
                parts.append(Part(answer, 1))
            elif spare and (answer.begun or self._begin(answer)):
                count = min(answer.left, spare)
                parts.append(Part(answer, count))
                spare -= count
        return sorted(parts, key=lambda part: part.answer.adapter)

    def leave(self, answer: Answer, broken: bool = False) -> None:
        """Take an answer out, wherever it is. How it began is kept, unless it is `broken`."""
        if answer in self.running:
            self.running.remove(answer)
            self._pressed = False
        elif answer in self.waiting:
            self.waiting.remove(answer)
        if answer.room is not None:
            if not broken and answer.computed >= LEAST:
                ids = answer.fed[: answer.computed]
                if not self.cache.beginnings.covers(answer.adapter, ids):
                    self.cache.keep(answer.adapter, ids, answer.room, answer.before)
            self.cache.free(answer.room, broken)
            answer.room = None

    def _let_grow(self) -> None:
        """Room for the next token of every answer; the newest are put back where there is none."""
        for answer in list(self.running):
            while answer.room is not None and not self.cache.grow(answer.room, answer.room.length + 1):
                self._put_back(self.running[-1])

    def _put_back(self, answer: Answer) -> None:
        assert answer.room is not None
        self.cache.free(answer.room)
        answer.room, answer.begun, answer._ids = None, False, None
        self.running.remove(answer)
        self.waiting.appendleft(answer)
        self.preempted += 1
        self._pressed = bool(self.running)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_answers and not self._pressed:
            answer = self.waiting[0]
            needed = answer.before + len(answer.fed)
            answer.room = self.cache.take(min(needed + min(answer.most - answer.taken, AHEAD), self.cache.longest))
            if answer.room is None:
                return
            self.running.append(self.waiting.popleft())

    def _begin(self, answer: Answer) -> bool:
        """Fill the front of a new answer's row; False while another one is computing what it could share."""
        assert answer.room is not None
        most = len(answer.fed) - 1  # one token at least is computed, or nothing would say what follows
        kept = self.cache.beginnings.find(answer.adapter, answer.ids)
        entry, length = (None, 0) if kept is None else (kept[0], min(kept[1], most))
        beside: Answer | None = None
        for other in self.running:
            if other is answer or other.adapter != answer.adapter or not other.begun:
                continue
            common = min(common_length(other.ids, answer.ids), most)
            if common >= max(length, other.computed) + LEAST:
                return False  # after the next step more of it will be there
            if (found := min(common, other.computed)) > length:
                beside, length = other, found
        if length >= LEAST and beside is not None and beside.room is not None:
            self.cache.copy(beside.room, answer.room, answer.before + length)
        elif length >= LEAST and entry is not None:
            self._fill(answer.room, list(zip(entry.keys, entry.values, strict=True)), answer.before + length)
        else:
            length = 0
            if answer.before:
                prefix = self.prefix(answer.adapter)
                self._fill(answer.room, [prefix[layer.index] for layer in self.cache.layers], answer.before)
        answer.room.length, answer.begun = answer.before + length, True
        self.shared_tokens += length
        return True

    def _fill(self, room: Room, given: list[tuple[Tensor, Tensor]], tokens: int) -> None:
        for layer, (k_KnE, v_KnE) in enumerate(given):
            room.slab.keys[layer][room.row, :, :tokens].copy_(k_KnE[:, :tokens])
            room.slab.values[layer][room.row, :, :tokens].copy_(v_KnE[:, :tokens])
