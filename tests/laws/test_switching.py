"""Law: adapters of all methods take turns on one loaded base; each gives its own logits to the bit, and the base its own in between."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.export.difference import logits_of
from tunesmith.generate import serving
from tunesmith.methods import method
from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import load as loading
from tunesmith.models import slots
from tunesmith.models.load import Base
from tunesmith.models.matrix import matrix

SIZES: dict[str, dict[str, Any]] = {
    "prompt": {"tokens": 3},
    "ptuning": {"tokens": 4, "hidden": 16},
    "prefix": {"tokens": 3, "hidden": 16},
    "ptuning_v2": {"tokens": 5},
    "adapter": {"reduction": 4.0},
}
# name -> settings: every method that leaves the base's own weights alone, and kinds of them that stand elsewhere in the model
ADAPTERS: dict[str, dict[str, Any]] = {name: {"name": name} | SIZES.get(name, {}) for name in METHODS if name not in ("full", "freeze")}
ADAPTERS |= {
    "lora of some layers": {"name": "lora", "rank": 2, "targets": ["q", "down"]},
    "lora with tokens": {"name": "lora", "rank": 2, "trainable_tokens": [5, 7]},
    "lora with a head": {"name": "lora", "rank": 2, "modules_to_save": ["lm_head"]},
    "houlsby": {"name": "adapter", "variant": "houlsby", "reduction": 4.0},
    "parallel": {"name": "adapter", "variant": "parallel", "reduction": 4.0},
}
BASES: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {"dtype": torch.bfloat16},
    "nf4": {"dtype": torch.float32, "quantize": True},
}
ONLY = {"nf4": {"loftq": {"name": "lora", "rank": 4, "init": "loftq"}}}
PROMPTS = [list(range(40, 59)), [7, 5, 200, 44]]


def loaded(folder: Path, base: str) -> Base:
    return loading.load(folder, **BASES[base])


def ready(base: Base, settings: dict[str, Any], seed: int) -> Tuning:
    """An adapter that does something, made for this base and not in its places."""
    chosen = SETTINGS[settings["name"]](**settings)

    def dense(path: str) -> Tensor:
        return matrix(base.folder, path, base.model)

    tuning = method.build(base.model, chosen, quantized=base.quantized)
    method.begin(tuning, Start(base.model, base.tokenizer, 0, dense, "spell a number"), chosen)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    method.settle(base.model, tuning, dense)
    return tuning


def logits(base: Base) -> list[Tensor]:
    with serving(base.model):
        return logits_of(base.model, PROMPTS)


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", BASES)
def test_adapters_take_turns_on_one_base(kind: str, tiny_llama: Path) -> None:
    wanted: dict[str, list[Tensor]] = {"": logits(loaded(tiny_llama, kind))}
    every = {name: settings for name, settings in (ADAPTERS | ONLY.get(kind, {})).items() if kind != "nf4" or METHODS[settings["name"]].NF4}
    for seed, (name, settings) in enumerate(every.items()):  # each alone, on a base of its own
        own = loaded(tiny_llama, kind)
        slots.place(own.model, ready(own, settings, seed).adapter)
        wanted[name] = logits(own)
    differ = [name for name in every for other in ["", *every] if name != other and same(wanted[name], wanted[other])]
    assert not differ, "each does something of its own"

    shared = loaded(tiny_llama, kind)
    state = {name: tensor.clone() for name, tensor in shared.model.state_dict().items()}
    tunings = {name: ready(shared, settings, seed) for seed, (name, settings) in enumerate(every.items())}
    assert same(logits(shared), wanted[""]), "adapters that are ready change nothing"
    order = [*every, *every]
    random.Random(0).shuffle(order)
    for name in order:
        slots.place(shared.model, tunings[name].adapter)
        assert same(logits(shared), wanted[name]), f"{name} as on a base of its own"
        slots.lift(shared.model, tunings[name].adapter)
        assert same(logits(shared), wanted[""]), f"the base after {name}"
    assert not slots.placed(shared.model) and list(slots.virtual_ids(shared.model)) == [] and slots.first_position(shared.model) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in shared.model.state_dict().items())
