"""The built-in engine: one thread computes steps, each for all answers in flight, whatever adapter they go by.

    submit ──► queue ──► plan (scheduler.py) ──► one packed row (forward.py, attention.py) ──► choose (sampling.py) ──► put
    any thread              └──────────────── the engine's thread, again and again ─────────────────────────────────────┘

What goes wrong with one answer ends that answer. Where a step of many fails, each is computed alone: a step can be repeated, since
lengths, random numbers and constraints go on only when its tokens are handed out.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.models import halves, nf4
from tunesmith.models.load import Base, attention
from tunesmith.models.source import Located
from tunesmith.serve.ask import Ask, Cancel, End, Full, Put, Token
from tunesmith.serve.builtin import attention as serving
from tunesmith.serve.builtin.adapters import Adapters
from tunesmith.serve.builtin.cache import Cache, bytes_per_token
from tunesmith.serve.builtin.constraints import matcher_of
from tunesmith.serve.builtin.forward import Forward
from tunesmith.serve.builtin.mixed import Mixed
from tunesmith.serve.builtin.sampling import Choice, choose
from tunesmith.serve.builtin.scheduler import Answer, Part, Scheduler

SHARE = {"cpu": 0.25, "cuda": 0.8}  # of the memory that is free once the model is loaded: the cache's part
STEP_TOKENS = {"cpu": 128, "cuda": 512}  # a processor needs no more for its products, and answers in flight wait for every step
BASE = ""  # what `Mixed` calls the model without an adapter


class Builtin:
    """An `ask.Engine`."""

    name = "builtin"

    def __init__(
        self,
        base: Base,
        located: Located,
        *,
        base_name: str = "",
        max_answers: int = 32,
        cache_tokens: int | None = None,
        step_tokens: int | None = None,
        queue: int = 256,
        adapter_bytes: int | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
    ):
        """`base_name`: what the base is asked for by, its own name where it is empty; `cache_tokens`: of all answers and kept
        beginnings, a share of free memory where it is None; `queue`: answers that may wait; `adapter_bytes`: of adapters that nobody
        uses just now, an eighth of free memory where it is None; `tell` is given what a user should know of an adapter.

        Raises UserError for a model that this engine cannot compute.
        """
        self.base, self.located, self.base_name = base, located, base_name or located.name
        device = torch.device(base.model.device)
        self.mixed = Mixed(base.model)
        self._forward = Forward(base, self.mixed)
        # each step would otherwise dequantise the whole model again
        nf4.keep_dense(base.model, hardware.free_memory(device) // 4)
        self._packed = halves.pack(base.model, hardware.free_memory(device) // 4)
        free = hardware.free_memory(device)
        self.adapters = Adapters(base, located, self.mixed, free // 8 if adapter_bytes is None else adapter_bytes, tell)
        longest = positions(base.model)
        if cache_tokens is None:
            cache_tokens = int(free * SHARE.get(device.type, 0.25)) // bytes_per_token(self._forward.layers, base.dtype)
            cache_tokens = min(cache_tokens, max_answers * longest) if longest else cache_tokens
        cache = Cache(self._forward.layers, base.dtype, device, cache_tokens, longest or cache_tokens, max_answers)
        steps = step_tokens or STEP_TOKENS.get(device.type, 128)
        self._scheduler = Scheduler(cache, self.mixed.prefix, max_answers, steps)
        self._queue = queue
        self._arrived: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._closing: float | None = None  # until when answers in flight may go on
        self._counts = dict.fromkeys(("steps", "answers", "answer_tokens", "prompt_tokens", "failed"), 0)
        hardware.give_threads_back()  # this thread has loaded the model; from now on the engine's computes
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, put: Put) -> Cancel:
        """As `ask.Engine` has it."""
        if self._closing is not None:
            raise Full("the server is closing")
        if len(self._arrived) + len(self._scheduler.waiting) >= self._queue:
            raise Full(f"{self._queue} answers are waiting")
        limit = self.context(ask.model)  # LookupError for a name that is not there
        if not ask.prompt_ids:
            raise ValueError("the prompt has no tokens")
        if len(ask.prompt_ids) >= limit:
            raise ValueError(f"the prompt has {len(ask.prompt_ids)} tokens, and {ask.model} takes {limit}, answer included")
        rows = self.base.model.get_input_embeddings().weight.shape[0]
        if max(ask.prompt_ids) >= rows or min(ask.prompt_ids) < 0:
            raise ValueError(f"token ids are between 0 and {rows - 1}")
        matcher = None if ask.constraint is None else matcher_of(ask.constraint, self.base.tokenizer, ask.stop_ids)
        choice = Choice(ask, self._forward.words, matcher)
        adapter, leave = self._held(ask.model)
        fed = [*self.mixed.virtual_ids(adapter), *ask.prompt_ids]
        before = self.mixed.first_position(adapter)
        most = min(ask.max_tokens, self._scheduler.cache.longest - before - len(fed))  # another adapter may have taken the name
        if most < 1:
            leave()
            raise ValueError(f"{ask.model} leaves no room for an answer to {len(ask.prompt_ids)} tokens")
        answer = Answer(ask, put, choice, adapter, fed, before, most, leave)
        with self._changed:
            late = self._closing is not None  # the thread may have ended meanwhile
            if not late:
                self._arrived.append(answer)
                self._changed.notify()
        if late:
            leave()
            raise Full("the server is closing")

        def cancel() -> None:
            answer.cancelled = True
            with self._changed:
                self._changed.notify()

        return cancel

    def context(self, model: str) -> int:
        """As `ask.Engine` has it; the cache is a limit too."""
        return self._scheduler.cache.longest - (0 if model == self.base_name else self.adapters.in_front(model))

    def load(self, name: str, folder: Any) -> None:
        """As `ask.Engine` has it."""
        self.adapters.load(name, folder)
        hardware.give_threads_back()

    def unload(self, name: str) -> None:
        """As `ask.Engine` has it."""
        self.adapters.unload(name)

    def figures(self) -> dict[str, float]:
        """As `ask.Engine` has it."""
        scheduler, cache = self._scheduler, self._scheduler.cache
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + len(self._arrived),
            "cache_tokens": cache.filled,
            "cache_tokens_allocated": cache.allocated,
            "cache_tokens_limit": cache.limit,
            "preempted_total": scheduler.preempted,
            "prompt_tokens_shared_total": scheduler.shared_tokens,
            **{f"{name}_total": count for name, count in self._counts.items()},
            **self.adapters.figures(),
        }

    def close(self, patience: float) -> None:
        """As `ask.Engine` has it."""
        with self._changed:
            self._closing = time.monotonic() + patience
            self._changed.notify()
        self._thread.join()

    def _held(self, model: str) -> tuple[str, Callable[[], None]]:
        """(what `Mixed` calls the adapter from now until it is given back, what gives it back). Raises LookupError and ValueError."""
        if model == self.base_name:
            return BASE, lambda: None
        key = self.adapters.hold(model)
        hardware.give_threads_back()  # it may have been read again
        return key, lambda: self.adapters.release(key)

    def _run(self) -> None:
        device = self._scheduler.cache.device
        on_card: Any = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with on_card, torch.no_grad(), attention(self.base.model, serving.NAME):
            while self._await_work():
                try:
                    self._turn()
                except Exception as error:  # a mistake of ours; whoever is in flight hears of it, the server goes on
                    for answer in list(self._scheduler.running):
                        self._end(answer, End("error", f"the engine failed: {_line(error)}"), broken=True)
        self.mixed.close()
        halves.unpack(self._packed)
        nf4.keep_dense(self.base.model, 0)

    def _await_work(self) -> bool:
        """Take in what has arrived; False once the engine is to end."""
        scheduler = self._scheduler
        with self._changed:
            while not (self._arrived or scheduler.running or scheduler.waiting or self._closing is not None):
                self._changed.wait()
            while self._arrived:
                scheduler.waiting.append(self._arrived.popleft())
        over = self._closing is not None and time.monotonic() >= self._closing
        for answer in [*scheduler.running, *scheduler.waiting]:
            if over or answer.cancelled:
                self._end(answer, End("cancelled"))
        return self._closing is None or bool(scheduler.running or scheduler.waiting)

    def _turn(self) -> None:
        parts = sorted(self._scheduler.plan(), key=lambda part: self.mixed.order(part.answer.adapter))  # whole spans, none torn apart
        if not parts:
            for answer in list(self._scheduler.waiting)[:1]:  # alone, and still there is no room for it
                self._end(answer, End("error", "the server has no memory left for this answer"))
            return
        self._counts["steps"] += 1
        results = self._computed(parts)
        for part in parts:
            found, answer = results[part.answer], part.answer
            if isinstance(found, str):
                self._end(answer, End("error", found), broken=True)
                continue
            assert answer.room is not None
            wanted = part.wants
            self._counts["prompt_tokens"] += part.count - wanted
            answer.room.length += part.count
            if wanted:
                assert found is not None
                self._take(answer, found)

    def _computed(self, parts: list[Part]) -> dict[Answer, Token | str | None]:
        """The token of each answer that wants one, None for those whose prompt goes on, or why it cannot go on."""
        try:
            results = self._step(parts)
        except Exception as error:  # of one of them, most likely
            if len(parts) == 1:
                return {parts[0].answer: f"this answer could not be computed: {_line(error)}"}
            results = {part.answer: "" for part in parts}
        if len(parts) > 1:
            for part in parts:
                if isinstance(results[part.answer], str) and not part.answer.choice.trouble:
                    results |= self._computed([part])
        return results

    def _step(self, parts: list[Part]) -> dict[Answer, Token | str | None]:
        logits_BV, sound_P = self._forward.compute(parts)
        wanting = [part.answer for part in parts if part.wants]
        tokens = dict(zip(wanting, choose(logits_BV, [answer.choice for answer in wanting]), strict=True))
        results: dict[Answer, Token | str | None] = {}
        for part, is_sound in zip(parts, sound_P.tolist(), strict=True):
            found = tokens.get(part.answer)
            if not is_sound or (part.wants and found is None):
                results[part.answer] = part.answer.choice.trouble or f"{part.answer.ask.model} computes values that are no numbers here"
            else:
                results[part.answer] = found
        return results

    def _take(self, answer: Answer, token: Token) -> None:
        if token.id in answer.ask.stop_ids:
            self._end(answer, End("stop"))
            return
        answer.fed.append(token.id)
        answer.taken += 1
        self._counts["answer_tokens"] += 1
        try:
            answer.choice.take(token.id)
        except Exception as error:
            self._end(answer, End("error", f"its constraint failed: {_line(error)}"))
            return
        try:
            answer.put(token)
        except Exception:  # whoever listened is gone
            self._end(answer, End("cancelled"))
            return
        if answer.choice.finished:
            self._end(answer, End("stop"))
        elif answer.taken >= answer.most:
            self._end(answer, End("length"))

    def _end(self, answer: Answer, end: End, broken: bool = False) -> None:
        self._scheduler.leave(answer, broken)
        answer.leave()
        self._counts["answers"] += 1
        self._counts["failed"] += end.reason == "error"
        with suppress(Exception):  # whoever listened is gone
            answer.put(end)


def positions(model: Any) -> int | None:
    """How many positions the model has, whatever stands in front among them; None where there is no limit.

    Rotary embeddings that change with the longest document of a batch would let answers depend on each other: such a model is used
    up to the length behind which they change.
    """
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, "max_position_embeddings", None)]
    found = getattr(config, "rope_parameters", None) or {}
    for rope in [found, *(part for part in found.values() if isinstance(part, dict))]:
        if rope.get("rope_type") == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
    return min((int(limit) for limit in limits if limit), default=None)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]
