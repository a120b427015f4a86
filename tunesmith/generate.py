"""Answers from a model: many prompts at once for scores, one token after another for chat.

The model class's own `generate` drives the cache, so hybrids and sliding windows work as their authors meant. What is
ours: an order that wastes little padding, settings that nothing in the model's folder can change, and draws whose
random numbers belong to the prompt and not to the batch, so that a batch of 16 samples what a batch of 1 would.

Shapes: B prompts of a batch, T tokens (left-padded), V vocabulary.
"""

import queue
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tunesmith import hardware
from tunesmith.errors import UserError
from tunesmith.models import front, halves, nf4, slots

BATCH_TOKENS = 16384  # tokens of a batch's prompts, padding and what stands in front included: bounds the prefill's memory
OURS = "tunesmith"  # name of our attention for packed rows; it knows no cache


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; top_p 1 and top_k 0 cut nothing."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.max_new_tokens < 1:
            problems.append(f"max_new_tokens: at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            problems.append(f"temperature: 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            problems.append(f"top_k: 0 (no limit) or more, not {self.top_k}")
        if problems:
            raise UserError(*problems)


@dataclass(frozen=True, slots=True)
class Generated:
    """What followed one prompt."""

    ids: list[int]  # without the stop token
    stopped: bool  # a stop token came; False: cut at the limit


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """Continue every prompt; the results stand in the order of `prompts`.

    `on_progress` gets (prompts done, all prompts) after each batch. Raises UserError for prompts that leave the model
    no room to answer.
    """
    limit = positions(model)
    if slots.prefix(model) and front.is_windowed(model):
        batch_size = 1  # padding would push the prefix out of the window
    if long := [f"prompt {i + 1} has {len(p)} tokens" for i, p in enumerate(prompts) if limit and len(p) >= limit]:
        raise UserError(*long, f"this model takes {limit} tokens, answer included: shorten these prompts or leave them out")
    results: dict[int, Generated] = {}
    with serving(model), halves.packed(model, hardware.free_memory(model.device) // 4):
        in_front = slots.first_position(model) + len(slots.virtual_ids(model))
        for rows in batches([in_front + len(prompt) for prompt in prompts], batch_size):
            new_BT = _continue(model, [prompts[row] for row in rows], stop_ids, sampling, rows)
            for row, new in zip(rows, new_BT, strict=True):
                results[row] = cut(new, stop_ids)
            if on_progress:
                on_progress(len(results), len(prompts))
    return [results[row] for row in range(len(prompts))]


def stream(model: Any, prompt: Sequence[int], stop_ids: Collection[int], sampling: Sampling) -> Generator[int, None, None]:
    """The answer's tokens as they come, without the stop token. Closing the iterator stops the model."""
    limit = positions(model)
    if limit and len(prompt) >= limit:
        raise UserError(f"the conversation has {len(prompt)} tokens, this model takes {limit}: begin a new one")
    arrived: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()
    prompts_left = iter((True,))  # the first thing that `generate` hands to a streamer is the prompt

    def put(ids: torch.Tensor) -> None:
        if not next(prompts_left, False):
            for token in ids.flatten().tolist():
                arrived.put(token)

    def work() -> None:
        try:
            _continue(model, [prompt], stop_ids, sampling, [0], SimpleNamespace(put=put, end=lambda: None), closed)
        except BaseException as error:  # whatever it is, the reader must wake up and see it
            arrived.put(error)
        finally:
            arrived.put(None)

    with serving(model), halves.packed(model, hardware.free_memory(model.device) // 4):
        hardware.give_threads_back()
        thread = threading.Thread(target=work, name="generate", daemon=True)
        thread.start()
        try:
            while (token := arrived.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                if token in stop_ids:
                    break
                yield token
        finally:
            closed.set()
            thread.join()


def detokenize(tokenizer: Any, ids: Iterable[int]) -> Iterator[str]:
    """Text as the tokens come; a character of several tokens (Chinese, emoji) is held back until it is whole."""
    ids_seen: list[int] = []
    start = shown = 0  # the text of ids_seen[start:shown] is out already; decoding from `start` keeps blanks right
    for token in ids:
        ids_seen.append(token)
        before, now = _text(tokenizer, ids_seen[start:shown]), _text(tokenizer, ids_seen[start:])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            yield now[len(before) :]
            start, shown = shown, len(ids_seen)
    if rest := _text(tokenizer, ids_seen[start:])[len(_text(tokenizer, ids_seen[start:shown])) :]:
        yield rest


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Rows of similar length together, the longest batch first, so that memory fails at once or not at all."""
    result: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        # the first row of a batch is its longest
        full = not result or len(result[-1]) == batch_size or lengths[result[-1][0]] * (len(result[-1]) + 1) > BATCH_TOKENS
        if full:
            result.append([])
        result[-1].append(row)
    return result


def cut(ids: Sequence[int], stop_ids: Collection[int]) -> Generated:
    """Up to the first stop token; what a batch computed after it is not the answer."""
    end = next((at for at, token in enumerate(ids) if token in stop_ids), None)
    return Generated(list(ids[:end]), end is not None)


@contextmanager
def serving(model: Any) -> Iterator[None]:
    """Evaluation mode, an attention that knows caches, and no defaults from the model's folder; put back on leaving."""
    training = [module for module in model.modules() if module.training]
    implementation, defaults = getattr(model.config, "_attn_implementation", None), model.generation_config
    # `generate` fills what a call leaves open (repetition_penalty, suppressed tokens) from here
    model.generation_config = GenerationConfig()
    model.eval()
    if implementation == OURS:
        _set_class_attention(model)
    # each token would otherwise dequantise the whole model again
    kept = nf4.dense_bytes(model)
    nf4.keep_dense(model, max(kept, hardware.free_memory(model.device) // 4))
    try:
        yield
    finally:
        nf4.keep_dense(model, kept)
        if implementation == OURS:
            model.set_attn_implementation(OURS)
        model.generation_config = defaults
        for module in training:
            module.training = True


def _set_class_attention(model: Any) -> None:
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, ImportError):  # attention sinks and soft-caps exist as plain code only
        model.set_attn_implementation("eager")


def _continue(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: Collection[int],
    sampling: Sampling,
    rows: Sequence[int],
    streamer: Any = None,
    closed: threading.Event | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, stop tokens and filling included. `rows` names each prompt's random stream."""
    assert all(prompts), "a prompt without tokens"
    asked = max(map(len, prompts))
    before, cache = slots.first_position(model), front.cache_of(model, len(prompts))
    prompts = [[*slots.virtual_ids(model), *prompt] for prompt in prompts]
    longest = before + max(map(len, prompts))
    fill = min(stop_ids, default=0)  # never seen: masked before the prompt, cut away after the stop
    ids_BT = torch.full((len(prompts), longest), fill, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    mask_BT[:, :before] = 1  # the prefix stands in the cache; `generate` passes over as many ids
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    limit = positions(model)
    settings = GenerationConfig(
        max_new_tokens=min(sampling.max_new_tokens, limit - asked) if limit else sampling.max_new_tokens,
        do_sample=False,  # draws are made in `_drawing`, which turns them into a maximum
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=fill,
    )
    new_BT = model.generate(
        input_ids=ids_BT.to(model.device),
        attention_mask=mask_BT.to(model.device),
        generation_config=settings,
        logits_processor=[_drawing(sampling, rows, model.device)] if sampling.temperature > 0 else [],
        stopping_criteria=[_when(closed)] if closed else [],
        streamer=streamer,
        **({} if cache is None else {"past_key_values": cache}),
    )
    return new_BT[:, longest:].tolist()


def _drawing(sampling: Sampling, rows: Sequence[int], device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Logits to scores whose largest is a draw from the softmax (Gumbel's trick), one random stream a prompt."""
    generators = [torch.Generator(device).manual_seed(sampling.seed * 1_000_003 + row) for row in rows]
    steps: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))

    def draw(ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        for step in steps:
            logits_BV = step(ids_BT, logits_BV)
        noise_BV = torch.empty_like(logits_BV)
        for row, generator in enumerate(generators):
            noise_BV[row].exponential_(generator=generator)
        return logits_BV - noise_BV.clamp_min(1e-30).log()

    return draw


def _when(closed: threading.Event) -> Callable[..., torch.Tensor]:
    return lambda ids_BT, scores, **_: torch.full((ids_BT.shape[0],), closed.is_set(), dtype=torch.bool, device=ids_BT.device)


def positions(model: Any) -> int | None:
    """The longest document that the model takes, what stands in front of it left out."""
    limit: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if limit is None else limit - slots.first_position(model) - len(slots.virtual_ids(model))


def _text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
