"""How a model answers while it is ours: what every proof of an export compares with. Computed before anything is written, so that
no mistake of a writer can be in it."""

import dataclasses
import gc
from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.data.sample import RowError
from tunesmith.export.difference import compare, logits_of, prompts
from tunesmith.export.target import ANSWER, Source, Tell, Truth
from tunesmith.generate import Sampling, generate, serving
from tunesmith.models import front, slots
from tunesmith.models import load as loading
from tunesmith.tuned import Tuned, open_tuned

# With and without a system prompt, one turn and several, in several languages: where a server's rendering differs, it differs here.
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Write a polite reply to a customer whose parcel is late."},
    ],
    [{"role": "user", "content": "用一句话解释什么是机器学习。👩‍🔬"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": 'Extract the city as JSON:\n\n    {"text": "I flew from Oslo to Rome in 2024."}'},
    ],
    [
        {"role": "system", "content": "You are a careful clerk."},
        {"role": "user", "content": "Add 12 and 30."},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Now take 2 away."},
    ],
)


def truth_of(source: Source, merged: bool, tell: Tell) -> Truth:
    """What the model says: with the adapter beside its base, or, `merged`, as the whole model that a checkpoint will hold.

    Raises UserError where the model cannot be opened, or not be merged.
    """
    tell(f"{source.name}: its own answers, to compare with")
    talks, asked = _asked(source)
    if merged or source.adapter is None:
        model = source.whole.in_memory()
        head = source.tuning.head if source.adapter is None else source.whole.head
        apart = source.whole.from_trained(model)
        return _heard(source, model, head, talks, asked, [], apart)
    tuned = open_tuned(source.given, model=source.model, dtype="float32")
    with serving(tuned.model):
        bare = _base_answers(tuned, asked)
        trained = logits_of(tuned.model, asked, tuned.head)
    if not _beside(tuned):
        return _heard(source, tuned.model, tuned.head, talks, asked, bare, None)
    heard = _heard(source, tuned.model, tuned.head, talks, asked, bare, None)
    return dataclasses.replace(heard, from_trained={"prompts": dataclasses.asdict(compare(trained, heard.logits))})


def _heard(
    source: Source, model: Any, head: Any, talks: list[Any], asked: list[list[int]], bare: list[list[int]], apart: dict[str, Any] | None
) -> Truth:
    with serving(model):
        answers = _answers(model, head, asked, source.renderer)
        return Truth(
            conversations=tuple(talks),
            prompts=tuple(asked),
            logits=tuple(logits_of(model, asked, head)),
            answers=tuple(answers),
            margins=tuple(_margins(model, ids, answer) for ids, answer in zip(asked, answers, strict=True)) if answers else (),
            base_answers=tuple(bare),
            from_trained=apart,
        )


def _asked(source: Source) -> tuple[list[list[dict[str, Any]]], list[list[int]]]:
    """The conversations that the chat template takes, and their ids; texts without one."""
    renderer = source.renderer
    if renderer.labelled:
        return [], prompts(source.tokenizer, renderer)
    talks, ids = [], []
    for talk in CONVERSATIONS:
        try:
            ids.append(renderer.prompt_ids(talk))
            talks.append(talk)
        except RowError:  # a template without system prompts, or none at all
            continue
    return (talks if source.tokenizer.chat_template else []), ids


def _base_answers(tuned: Tuned, asked: Sequence[list[int]]) -> list[list[int]]:
    if not tuned.has_adapter or tuned.head is not None:
        return []
    with tuned.without_adapter():
        return _answers(tuned.model, None, asked, tuned.renderer)


def _answers(model: Any, head: Any, asked: Sequence[list[int]], renderer: Any) -> list[list[int]]:
    if head is not None:
        return []
    return [each.ids for each in generate(model, asked, renderer.stops, Sampling(max_new_tokens=ANSWER))]


@torch.no_grad()
def _margins(model: Any, ids: list[int], answer: list[int]) -> list[float]:
    """By how much the chosen token's logit is above the next one's, for each token of an answer."""
    if not answer:
        return []
    logits_TV = front.logits(model, torch.tensor([ids + answer], device=model.device))[0].float()
    best_A2 = logits_TV[len(ids) - 1 : len(ids) - 1 + len(answer)].topk(2).values
    return (best_A2[:, 0] - best_A2[:, 1]).tolist()


def _beside(tuned: Tuned) -> bool:
    """Let base and adapter stand as servers put them side by side: a base that is not NF4, and its updates as plain LoRAs. Whether that
    is anything else than what was trained."""
    if not tuned.base.quantized:
        return False
    modules: dict[str, Any] = tuned.tuning.adapter
    slots.lift(tuned.model, modules)
    folder, head = tuned.base.folder, tuned.head
    tuned.base.model = None  # two models at once might not fit
    gc.collect()  # layers and what stood beside them name each other
    tuned.base = loading.load(folder, dtype=torch.float32, own_head=head is None)
    slots.place(tuned.model, {path: module.as_lora() if hasattr(module, "as_lora") else module for path, module in modules.items()})
    return True
