"""The shelf of methods, and what is common to all of them.

A method's file gives `build(model, settings, device)` (shapes only: it also runs on the meta device), `init(tuning, start,
settings)` (values), `NF4` (whether it trains over an NF4 base) and `LEARNING_RATES` (by
channels of the model; `learning_rates(settings)` where they depend on the settings). Its settings stand in `methods/settings.py`.

A module is put at its path and called there as `module(layer, *inputs)` in place of the layer's own forward; one that has
`attach(layer)` and `detach(layer)` does it its own way. Others it may have: `settle(layer, dense)`, which changes the base once
values are known (NF4 of a residual, say), and `folded(weight_OI)`, the matrix with the update in it.

A server lets rows of one batch go by different adapters (`serve/builtin/mixed.py`). For that a module has one of `factors(layer)`, a
low-rank update; `changed(layer, x, y)`, another output y for input x (with `served_at(path)` where these are other layers'); and
`instead(layer, *inputs)`, what takes the layer's place. One that has none of them is refused there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods import adapter, dora, freeze, full, lora, pissa, prefix, prompt, ptuning, ptuning_v2
from tunesmith.methods.layouts import head as layouts_head
from tunesmith.methods.layouts.adapter_file import some
from tunesmith.methods.parts import extras, loftq
from tunesmith.methods.rates import Rates
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.score import Score, replaced

METHODS: dict[str, ModuleType] = {
    "full": full,
    "freeze": freeze,
    "lora": lora,
    "dora": dora,
    "pissa": pissa,
    "prompt": prompt,
    "ptuning": ptuning,
    "prefix": prefix,
    "ptuning_v2": ptuning_v2,
    "adapter": adapter,
}


def build(model: Any, settings: Any, *, quantized: bool, device: Any = None) -> Tuning:
    """The trained part of a model, without values. Raises UserError for what the method cannot do, with the reason."""
    method = _file(settings)
    if method is loftq and not quantized:
        raise UserError(
            "method.init=loftq makes up for what NF4 rounds away, and this base is not rounded; "
            "take method.name=qlora (model.quantize=nf4), or another method.init: method.name=pissa begins from the base's own weights"
        )
    if quantized and not method.NF4:
        raise UserError(
            f"method {settings.name} trains the base's own weights, and NF4 codes have no gradient; "
            "take method.name=lora (QLoRA), or model.quantize=null"
        )
    try:
        return method.build(model, settings, device)
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is a mistake of ours, not the user's
            raise
        raise UserError(f"method {settings.name}: {error.args[0]}") from None


def _file(settings: Any) -> ModuleType:
    """The file that makes a method's modules. LoftQ is a way for LoRA to begin, but it changes the base too: it has a file of its own."""
    return loftq if getattr(settings, "init", None) == "loftq" else METHODS[settings.name]


def learning_rates(settings: Any) -> Rates:
    """The method's default rates by channels of the model."""
    file = METHODS[settings.name]
    chosen = getattr(file, "learning_rates", None)
    rates: Rates = chosen(settings) if chosen else file.LEARNING_RATES
    return rates


def give_head(model: Any, tuning: Tuning, head: Score) -> None:
    """Let a task's head be trained beside the method's own tensors. The model's own head computes nothing then, and is left out.

    Raises UserError where the method was told to train a language model's head that is no embedding too.
    """
    tuning.adapter = extras.without_head(tuning.adapter, model)
    if beside := [path for path in tuning.adapter if model.get_submodule(path) is model.get_output_embeddings()]:
        raise UserError(
            f"method: {beside[0]} is the language model's head, which computes nothing for task.name={head.task}; "
            "leave it out of the method's settings: the task's own head is trained anyway"
        )
    unused = replaced(model)
    tuning.parameters = {name: parameter for name, parameter in tuning.parameters.items() if name not in unused} | head.tensors
    tuning.head = head
    if note := layouts_head.note(model, head):
        tuning.notes.append(note)


def unmergeable(tuning: Tuning, folder: str = "DIR") -> str:
    """Why the adapter in `folder` cannot become part of the base's matrices, and what can be done instead; or ""."""
    beside = [path for path, module in tuning.adapter.items() if not (hasattr(module, "folded") or hasattr(module, "follows"))]
    if not beside:
        return ""
    return (
        f"what stands at {beside[0]} changes no matrix ({tuning.layout}), so it cannot become part of the base; "
        f"serve the two together (`tunesmith serve {folder}`), or let a LoRA be fitted to it, with the error told "
        f"(`tunesmith export {folder} --to peft --as lora --out OUT`); method.name=lora trains what merges"
    )


def place(model: Any, tuning: Tuning) -> None:
    """Put the adapter in its places and let gradients reach what is trained, and nothing else."""
    slots.place(model, tuning.adapter)
    model.requires_grad_(False)
    for parameter in tuning.parameters.values():
        parameter.requires_grad_(True)


def begin(tuning: Tuning, start: Start, settings: Any) -> None:
    """First values, by the method. Raises UserError for what they cannot be made of."""
    head, own = tuning.head, tuning
    if head is not None:  # no method knows of its tensors
        own = replace(tuning, parameters={name: p for name, p in tuning.parameters.items() if name not in head.tensors}, head=None)
        head.begin(start.seed)
    _file(settings).init(own, start, settings)


def settle(model: Any, tuning: Tuning, dense: Callable[[str], Tensor]) -> None:
    """Let the modules change the base as their values need it; `dense` as in `Start`. Once, before they are placed."""
    for path, module in tuning.adapter.items():
        if (change := getattr(module, "settle", None)) is not None:
            change(model.get_submodule(path), lambda path=path: dense(path))


def state(tuning: Tuning) -> dict[str, Tensor]:
    """Every tensor that a run has to keep, by name, detached, not copied."""
    return {name: tensor.detach() for name, tensor in (tuning.parameters | tuning.fixed).items()}


def misfits(tuning: Tuning, tensors: Mapping[str, Tensor]) -> list[str]:
    """A sentence for every tensor that is missing, unknown or of another shape."""
    wanted = tuning.parameters | tuning.fixed
    problems = [f"{name}: not in the file, {tuple(wanted[name].shape)} is needed" for name in wanted if name not in tensors]
    problems += [f"{name}: in the file, but not in the model" for name in tensors if name not in wanted]
    problems += [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(wanted[name].shape)} in the model"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    return problems


@torch.no_grad()
def restore(tuning: Tuning, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy values into the tensors that stand already. Raises UserError with every misfit at once.

    Copied, never exchanged: a product's last bits depend on how its operands lie in memory, and a resumed run must repeat
    those of an undisturbed one.
    """
    if problems := misfits(tuning, tensors):
        raise UserError(f"{source} does not fit this model:", *[f"  {problem}" for problem in some(problems)])
    for name, tensor in (tuning.parameters | tuning.fixed).items():
        tensor.copy_(tensors[name])
