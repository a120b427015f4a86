"""q k v, gate and up: computed at one call, right whatever the class does."""

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.methods import method
from tunesmith.methods.lora import LoRA
from tunesmith.methods.settings import LoRA as Settings
from tunesmith.methods.settings import PiSSA as PissaSettings
from tunesmith.models import products, slots, together
from tunesmith.models.nf4 import weight_of
from tunesmith.step.recompute import recompute_blocks

IDS = some_ids(12)[None]
# What a block of each family calls at once, by the numbers of layers; families whose matrices are fused have none.
GROUPS = {
    "llama": [3, 2], "llama_tied": [3, 2], "qwen2": [3, 2], "qwen3": [3, 2], "mistral": [3, 2], "gemma2": [3, 2], "gemma3": [3, 2],
    "phi": [3], "phi3": [], "mixtral": [3], "qwen3_moe": [3], "gpt2": [], "cohere": [3, 2], "granite": [3, 2], "gpt_oss": [3],
    "opt": [3], "gpt_neox": [], "starcoder2": [3], "smollm3": [3, 2], "falcon": [], "bloom": [], "mpt": [], "gptj": [3],
    "lfm2": [], "mamba": [], "llama4": [],
}  # fmt: skip


def filled(model: Any, settings: Any) -> Any:
    """An adapter that changes what the model computes."""
    tuning = method.build(model, settings, quantized=False)
    torch.manual_seed(5)
    modules: Any = tuning.adapter
    with torch.no_grad():
        if settings.name == "pissa":
            for path, module in modules.items():
                down, up = torch.randn(module.A.shape) / 8, torch.randn(module.B.shape) / 8
                module.start_from(up, down)
                module.settle(model.get_submodule(path), lambda path=path: weight_of(model.get_submodule(path)).float())
        for parameter in tuning.parameters.values():
            parameter.copy_(torch.randn(parameter.shape) / 8)
    return tuning


def counted(monkeypatch: Any) -> list[int]:
    """How many layers each call of the function computes, as they happen."""
    sizes: list[int] = []
    plain = products.updated

    def noted(x: torch.Tensor, updates: Any, *down: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(len(updates))
        return plain(x, updates, *down)

    monkeypatch.setattr(products, "updated", noted)
    return sizes


def results(model: Any, tuning: Any) -> list[torch.Tensor]:
    """Logits and all gradients."""
    logits = model(input_ids=IDS, use_cache=False).logits
    return [logits, *torch.autograd.grad(logits.square().sum(), list(tuning.parameters.values()))]


def test_the_table_knows_every_family():
    assert GROUPS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", [name for name, sizes in GROUPS.items() if sizes])
def test_every_family_calls_them_with_one_input_and_computes_what_each_alone_does(name, monkeypatch):
    model = tiny(name)
    tuning = filled(model, Settings(rank=2))
    with monkeypatch.context() as alone:
        alone.setattr(slots, "same_input", lambda model, paths: [])
        method.place(model, tuning)
    expected = results(model, tuning)
    slots.lift(model, tuning.adapter)
    method.place(model, tuning)
    sizes = counted(monkeypatch)
    found = results(model, tuning)
    assert [size for size in sizes if size > 1] == 2 * GROUPS[name]
    assert sum(sizes) == len(tuning.adapter)  # nothing was computed twice, and nothing in vain
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
    slots.lift(model, tuning.adapter)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(("settings", "expected"), [
    (Settings(rank=2, targets=["q", "v"]), [2]),
    (Settings(rank=2, targets=["q", "gate"]), [1, 1]),
    (Settings(rank=2, targets=["v", "up", "gate"]), [1, 2]),
    (PissaSettings(rank=2), [3, 1, 2, 1]),
])  # fmt: skip
def test_those_that_are_targets_are_computed_together(settings, expected, monkeypatch):
    model = tiny("llama")
    tuning = filled(model, settings)
    method.place(model, tuning)
    sizes = counted(monkeypatch)
    results(model, tuning)
    assert sizes == 2 * expected


def test_a_block_that_is_computed_again_gives_the_same_to_the_bit():
    model = tiny("llama")
    tuning = filled(model, Settings(rank=2))
    method.place(model, tuning)
    plain = results(model, tuning)
    recompute_blocks(model)
    for ours, theirs in zip(results(model, tuning), plain, strict=True):
        assert torch.equal(ours, theirs)
    assert all(not forward.func._waiting for forward in forwards(model))


def forwards(model: Any) -> list[Any]:
    return [vars(m)["forward"] for m in model.modules() if isinstance(getattr(vars(m).get("forward"), "func", None), together.Together)]


def test_dropout_is_drawn_for_each_layer_of_its_own(monkeypatch):
    model = tiny("llama")
    tuning = filled(model, Settings(rank=2, dropout=0.5))
    method.place(model, tuning)
    sizes = counted(monkeypatch)
    quiet = results(model, tuning)
    assert max(sizes) == 3
    sizes.clear()
    tuning.train()
    noisy = results(model, tuning)
    assert sizes == [] and not torch.allclose(quiet[0], noisy[0])


def pair(out: int = 6) -> tuple[list[nn.Linear], list[LoRA]]:
    torch.manual_seed(1)
    layers = [nn.Linear(8, out).requires_grad_(False) for _ in range(2)]
    modules = [LoRA(8, out, 2, 1.5) for _ in range(2)]
    for module in modules:
        nn.init.normal_(module.A)
        nn.init.normal_(module.B)
    together.stand(layers, modules)
    return layers, modules


def alone(layers: Any, modules: Any, number: int, x: torch.Tensor) -> torch.Tensor:
    return type(layers[number]).forward(layers[number], x) + 1.5 * x @ modules[number].A.T @ modules[number].B.T


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0, 1), (0,), (1, 1, 0, 0)])
def test_any_order_of_calls_is_right(order):
    layers, modules = pair()
    x = torch.randn(3, 8)
    for number in order:
        torch.testing.assert_close(layers[number](x), alone(layers, modules, number, x))


def test_what_waits_is_for_the_same_tensor_unchanged_under_the_same_mode(monkeypatch):
    layers, modules = pair()
    x, other = torch.randn(3, 8), torch.randn(3, 8)
    sizes = counted(monkeypatch)
    layers[0](x)
    torch.testing.assert_close(layers[1](other), alone(layers, modules, 1, other))
    layers[0](x)
    torch.testing.assert_close(layers[1](x.clone()), alone(layers, modules, 1, x))
    layers[0](x)
    x.mul_(2)
    torch.testing.assert_close(layers[1](x), alone(layers, modules, 1, x))
    with torch.no_grad():
        layers[0](x)
    assert layers[1](x).requires_grad
    assert len(sizes) == 8
    layers[0](x)
    layers[1](x)
    assert len(sizes) == 9


def test_threads_do_not_take_each_others_outputs():
    layers, modules = pair()
    x, seen = torch.randn(3, 8), []
    layers[0](x)
    thread = threading.Thread(target=lambda: seen.append(layers[1](x)))
    thread.start()
    thread.join()
    torch.testing.assert_close(seen[0], alone(layers, modules, 1, x))


def test_values_that_changed_are_used_at_the_next_call():
    layers, modules = pair()
    x = torch.randn(3, 8)
    layers[0](x), layers[1](x)
    with torch.no_grad():
        modules[1].A.mul_(3)
        modules[0].B.mul_(2)
    for number in (0, 1):
        torch.testing.assert_close(layers[number](x), alone(layers, modules, number, x))


def test_under_a_checkpoint_the_outputs_and_gradients_are_those_without():
    layers, modules = pair()
    x = torch.randn(3, 8, requires_grad=True)

    def both(x: torch.Tensor) -> torch.Tensor:
        return (layers[0](x).sigmoid() * layers[1](x)).sum()

    leaves = [x, *[p for module in modules for p in module.parameters()]]
    for ours, theirs in zip(
        torch.autograd.grad(checkpoint(both, x, use_reentrant=False), leaves), torch.autograd.grad(both(x), leaves), strict=True
    ):
        assert torch.equal(ours, theirs)
