"""Law: adapters of every method are served beside each other, and each answer is what its own adapter gives alone, in its places."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.serve.builtin.engines import Client, agree, engine_of
from tests.tiny_models import some_ids, tiny
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import front, load, slots
from tunesmith.models.load import Base, attention
from tunesmith.models.source import Located
from tunesmith.serve.builtin.engine import Builtin

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "rslora": {"name": "lora", "rank": 2, "rslora": True, "targets": ["q", "v"]},
    "tokens": {"name": "lora", "rank": 2, "trainable_tokens": [5, 7]},
    "dora": {"rank": 4},
    "prompt": {"tokens": 3},
    "ptuning": {"tokens": 4, "hidden": 16},
    "prefix": {"tokens": 9, "hidden": 16},
    "ptuning_v2": {"tokens": 5},
    "adapter": {"reduction": 4.0},
}


def ready(model: Any, name: str) -> Tuning:
    given = {"name": name} | METHODS[name]
    settings = SETTINGS[given["name"]](**given)
    tuning = method.build(model, settings, quantized=False)

    def dense(path: str) -> torch.Tensor:
        return model.get_submodule(path).weight.T if model.config.model_type == "gpt2" else model.get_submodule(path).weight

    with attention(model, "eager"):
        method.begin(tuning, Start(model, None, 0, dense), settings)
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuning.train(False)
    return tuning


def alone(family: str, name: str, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """As `engines.alone`, behind an adapter in its ordinary places."""
    model = tiny(family)
    if name != "base":
        slots.place(model, ready(model, name).adapter)
    return likeliest(model, ids, count)


def likeliest(model: Any, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    ids, found = list(ids), []
    with torch.no_grad(), attention(model, "eager"):
        for _ in range(count):
            found.append(F.log_softmax(front.logits(model, torch.tensor([ids]))[0, -1].float(), -1))
            ids.append(int(found[-1].argmax()))
    return ids[len(ids) - count :], torch.stack(found)


def with_adapters(engine: Builtin, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters without folders."""
    added = {name: engine.mixed.add(name, ready(engine.base.model, name)) for name in names}
    monkeypatch.setattr(engine, "_held", lambda name: ("" if name == "base" else name, lambda: None))
    monkeypatch.setattr(engine.adapters, "in_front", lambda name: added[name].first_position + added[name].virtual_tokens)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mixtral"])
def test_every_method_beside_every_other(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gemma3: windows of 7 positions that a prefix of 9 leaves; tied and scaled embeddings."""
    names = ["base", *METHODS]
    prompts = {name: some_ids(12 + 5 * at, at).tolist() for at, name in enumerate(names)}
    with engine_of(family, step_tokens=40) as engine:
        with_adapters(engine, list(METHODS), monkeypatch)
        clients = {name: Client(engine, prompts[name], 6 + at, model=name) for at, name in enumerate(names)}
        answers = {name: client.rest()[0] for name, client in clients.items()}
    for name, tokens in answers.items():
        agree(tokens, alone(family, name, prompts[name], len(tokens)))


def test_beginnings_belong_to_their_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = some_ids(60, 3).tolist()
    with engine_of("llama") as engine:
        with_adapters(engine, ["lora", "prefix"], monkeypatch)
        for name, shared in (("base", 0), ("lora", 0), ("prefix", 0), ("prefix", 59), ("lora", 118)):
            agree(Client(engine, prompt, 5, model=name).rest()[0], alone("llama", name, prompt, 5))
            assert engine.figures()["prompt_tokens_shared_total"] == shared


def test_what_stands_in_front_takes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of("llama") as engine:
        with_adapters(engine, ["prefix", "prompt"], monkeypatch)
        assert (engine.context("base"), engine.context("prefix"), engine.context("prompt")) == (256, 247, 253)
        tokens, end = Client(engine, some_ids(240, 1).tolist(), 50, model="prefix").rest()
        assert (len(tokens), end.reason) == (7, "length")


def test_adapters_come_from_folders_and_are_exchanged_under_load(tiny_llama: Path, tmp_path: Path) -> None:
    """Answers end with what they began with; who asks later gets what stands under the name by then."""

    def loaded() -> Base:
        return load.load(tiny_llama, dtype=torch.float32)

    for name in ("lora", "prompt"):
        base = loaded()
        layout.write(tmp_path / name, base.model, ready(base.model, name), str(tiny_llama))
    truths: dict[str, tuple[list[int], torch.Tensor]] = {}
    for name in ("lora", "prompt"):
        model = loaded().model
        slots.place(model, layout.fit(layout.read(tmp_path / name), model).adapter)
        truths[name] = likeliest(model, [40, 41, 42], 60)
    engine = Builtin(loaded(), Located(tiny_llama, "base", "folder", ""), cache_tokens=4096)
    try:
        engine.load("customer", tmp_path / "lora")
        first = Client(engine, [40, 41, 42], 60, model="customer")
        head = first.token()
        engine.load("customer", tmp_path / "prompt")
        second = Client(engine, [40, 41, 42], 60, model="customer")
        agree([head, *first.rest()[0]], truths["lora"])
        agree(second.rest()[0], truths["prompt"])
        engine.unload("customer")
        with pytest.raises(LookupError):
            Client(engine, [40], model="customer")
        agree(Client(engine, [40, 41, 42], 5).rest()[0], likeliest(loaded().model, [40, 41, 42], 5))
        assert engine.figures()["adapters"] == 0
    finally:
        engine.close(0.0)
