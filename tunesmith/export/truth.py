"""How a model answers while it is ours: what every proof of an export compares with. Computed before anything is written, so that
no mistake of a writer can be in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from tunesmith.data.sample import RowError
from tunesmith.export import merge
from tunesmith.export.difference import compare, logits_of, prompts
from tunesmith.export.target import ANSWER, Source, Tell, Truth
from tunesmith.generate import Sampling, generate, serving
from tunesmith.models import front, slots
from tunesmith.models import load as loading
from tunesmith.models.matrix import name_in, tensor_files
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

    Raises UserError where the model cannot be opened.
    """
    tell(f"{source.name}: its own answers, to compare with")
    tuned = open_tuned(source.given, model=source.model, dtype="float32")
    talks, asked = _asked(source)
    with serving(tuned.model):
        trained = logits_of(tuned.model, asked, tuned.head)
        bare = _base_answers(tuned, asked)
    changed = _as_exported(tuned, source, merged)
    with serving(tuned.model):
        logits = logits_of(tuned.model, asked, tuned.head) if changed else trained
        answers = _answers(tuned.model, tuned.head, asked, source.renderer)
        margins = [_margins(tuned.model, ids, answer) for ids, answer in zip(asked, answers, strict=True)] if answers else []
    return Truth(
        conversations=tuple(talks),
        prompts=tuple(asked),
        logits=tuple(logits),
        answers=tuple(answers),
        margins=tuple(margins),
        base_answers=tuple(bare),
        from_trained=compare(trained, logits),
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


# --- the same model as it will be handed over ---


def _as_exported(tuned: Tuned, source: Source, merged: bool) -> bool:
    """Change the model in memory into what the export will hold. Whether anything changed."""
    if not tuned.has_adapter:
        return False
    modules: dict[str, Any] = tuned.tuning.adapter
    if not merged and not tuned.base.quantized:
        return False
    slots.lift(tuned.model, modules)
    if tuned.base.quantized:
        folder, head = tuned.base.folder, tuned.head
        tuned.base.model = None  # two models at once might not fit
        tuned.base = loading.load(folder, dtype=torch.float32, own_head=head is None)
    if merged:
        fold_in_memory(tuned.model, modules, source)
    else:
        slots.place(tuned.model, {path: module.as_lora() if hasattr(module, "as_lora") else module for path, module in modules.items()})
    return True


@torch.no_grad()
def fold_in_memory(model: Any, modules: dict[str, Any], source: Source) -> None:
    """Fold each module into its layer's own matrix, rounded to the dtype that the checkpoint keeps it in."""
    stored = _dtypes(model, list(modules), source)
    for path, module in modules.items():
        if hasattr(module, "follows"):  # the other end of a tied model: the same matrix
            continue
        layer = model.get_submodule(path)
        own: Tensor = layer.weight
        own.copy_(merge.folded(own.detach().to(stored[path]), module, isinstance(layer, Conv1D)))
        for name, vector in (module.vectors() if hasattr(module, "vectors") else {}).items():
            layer.get_parameter(name).copy_(vector.to(stored[path]))


def _dtypes(model: Any, paths: list[str], source: Source) -> dict[str, torch.dtype]:
    """The checkpoint's dtype of each layer's matrix."""
    from safetensors import safe_open

    names = tensor_files(source.base)
    found = {}
    for path in paths:
        key = name_in(names, path, model.base_model_prefix)
        if key is None:
            found[path] = torch.float32
            continue
        with safe_open(names[key], framework="pt") as content:
            found[path] = _TORCH[content.get_slice(key).get_dtype()]
    return found


_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
