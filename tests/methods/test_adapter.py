"""Bottleneck adapters: what they compute, where they stand, how they begin."""

import threading
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import some_documents, some_ids, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.methods import adapter, method
from tunesmith.methods.adapter import Bottleneck, width_of
from tunesmith.methods.settings import Adapter
from tunesmith.methods.tuning import Start
from tunesmith.models import slots
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.recompute import recompute_blocks

VARIANTS = ["houlsby", "pfeiffer", "parallel"]
variants = pytest.mark.parametrize("variant", VARIANTS)
# a family of every kind: plain, norms behind, beside each other, residual inside the sublayer, no MLP module, experts, tuples
FAMILIES = ["llama", "gemma3", "phi", "bloom", "mpt", "opt", "mixtral", "gpt_oss", "gpt2", "falcon", "lfm2", "llama4"]


def begun(name: str, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """Model and tuning with first values, nothing in place."""
    model, told = tiny(name), Adapter(**settings)
    tuning = adapter.build(model, told)
    adapter.init(tuning, Start(model, None, seed, lambda path: torch.empty(0)), told)
    return model, tuning


def random(tuning: Any, std: float = 0.1) -> Any:
    torch.manual_seed(3)
    for parameter in tuning.parameters.values():
        nn.init.normal_(parameter, std=std)
    return tuning


def bottleneck(**settings: Any) -> Bottleneck:
    made = Bottleneck(8, 3, **{"activation": "relu", "scale": 1.0, **settings})
    torch.manual_seed(2)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def update(made: Any, x: torch.Tensor) -> torch.Tensor:
    return made.added(torch.zeros_like(x), x)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", nn.ReLU()), ("gelu", nn.GELU()), ("gelu_new", nn.GELU("tanh")), ("silu", nn.SiLU()), ("tanh", nn.Tanh())],
)
def test_the_update_is_the_formula(activation, function):
    made, x = bottleneck(activation=activation, scale=1.5), torch.randn(2, 5, 8, requires_grad=True)
    expected = 1.5 * (function(x @ made.down.T + made.down_bias) @ made.up.T + made.up_bias)
    torch.testing.assert_close(update(made, x), expected, rtol=1e-5, atol=1e-5)
    leaves, direction = [x, *made.parameters()], torch.randn(2, 5, 8)
    ours, theirs = (torch.autograd.grad(y, leaves, direction) for y in (update(made, x), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bf16_computes_in_bf16_and_keeps_masters_in_fp32():
    made, layer = bottleneck(), nn.Linear(8, 8).bfloat16()
    x = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    y = made(layer, x)
    y.sum().backward()
    assert x.grad is not None and y.dtype == x.grad.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in made.parameters())
    own = layer(x).float()
    torch.testing.assert_close(y.float(), own + update(made, own), rtol=0.05, atol=0.1)


def test_what_stands_behind_the_first_part_of_a_tuple_stays():
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor, *, cache: str) -> tuple[torch.Tensor, str]:
            return x + 1, cache

    made, layer, x = bottleneck(), Layer(), torch.randn(4, 8)
    y, cache = made(layer, x, cache="kept")
    assert cache == "kept"
    torch.testing.assert_close(y, x + 1 + update(made, x + 1))


def test_dropout_is_on_the_update_and_only_while_training():
    made, layer, x = bottleneck(dropout=0.5), nn.Identity(), torch.randn(500, 8)
    quiet = made(layer, x)
    torch.testing.assert_close(quiet, bottleneck()(layer, x))
    made.train()
    changed = made(layer, x) - x
    dropped = changed == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(changed[~dropped], (2 * (quiet - x))[~dropped], rtol=1e-4, atol=1e-5)


@variants
@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_is_the_base_to_the_bit_and_every_tensor_learns(name, variant):
    model, tuning = begun(name, variant=variant)
    ids = some_ids(9)[None]
    before = model(ids).logits
    method.place(model, tuning)
    assert torch.equal(model(ids).logits, before)
    random(tuning)
    after = model(ids).logits
    assert (after - before).abs().max() > 0.01 * before.abs().max()
    after.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tuning.parameters.values())
    slots.lift(model, tuning.adapter)
    assert torch.equal(model(ids).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def stream(model: Any, tuning: Any, ids: torch.Tensor, block: int = 0) -> torch.Tensor:
    """Output of a Llama's block by the definition, written down once more."""
    layer, modules = model.model.layers[block], tuning.adapter
    x = model.model.embed_tokens(ids)
    places = model.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
    variant = "houlsby" if f"model.layers.{block}.mlp" in modules else "parallel" if modules[f"model.layers.{block}"].reads else "pfeiffer"
    one = modules.get(f"model.layers.{block}.self_attn") or modules[f"model.layers.{block}"]
    attend = type(layer.self_attn).forward(layer.self_attn, layer.input_layernorm(x), places, None)[0]
    y = x + attend + (update(one, attend) if variant == "houlsby" else 0)
    mlp = type(layer.mlp).forward(layer.mlp, type(layer.post_attention_layernorm).forward(layer.post_attention_layernorm, y))
    if variant == "houlsby":
        return y + mlp + update(modules[f"model.layers.{block}.mlp"], mlp)
    return y + mlp + update(one, y if variant == "parallel" else y + mlp)


@variants
def test_a_block_computes_its_definition(variant):
    model, tuning = begun("llama", variant=variant, width=5)
    random(tuning, 0.3)
    slots.place(model, tuning.adapter)
    ids, seen = some_ids(6)[None], []
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(ids)
        torch.testing.assert_close(seen[0], stream(model, tuning, ids), rtol=1e-5, atol=1e-5)


@variants
def test_build_makes_these_modules(variant):
    _, tuning = begun("llama", variant=variant, width=5)
    paths = {"houlsby": ["model.layers.{}.self_attn", "model.layers.{}.mlp"]}.get(variant, ["model.layers.{}"])
    assert list(tuning.adapter) == [path.format(block) for block in range(2) for path in paths]
    first = paths[0].format(0)
    assert list(tuning.parameters)[:4] == [f"{first}.{name}" for name in ("down", "down_bias", "up", "up_bias")]
    assert [tuple(p.shape) for p in tuning.parameters.values()][:4] == [(5, 64), (5,), (64, 5), (64,)]
    assert tuning.count == 2 * len(paths) * (2 * 5 * 64 + 5 + 64) and tuning.layout == "adapterhub" and tuning.notes == []


def test_auto_is_what_adapterhub_has():
    def first(**settings: Any) -> Bottleneck:
        return next(iter(adapter.build(tiny("llama"), Adapter(**settings)).adapter.values()))  # type: ignore[return-value]

    for variant, wanted in {"pfeiffer": ("relu", 4, 1.0), "houlsby": ("silu", 4, 1.0), "parallel": ("relu", 32, 4.0)}.items():
        made = first(variant=variant)
        assert (made.activation, made.down.shape[0], made.scale) == wanted
    made = first(variant="parallel", reduction=10.0, activation="tanh", scale=0.5, dropout=0.1)
    assert (made.activation, made.down.shape[0], made.scale, made.dropout) == ("tanh", 6, 0.5, 0.1)
    assert first(width=7, reduction=2.0).down.shape[0] == 7


def test_widths_are_rounded_down_and_never_zero():
    assert [width_of(64, 16), width_of(100, 16), width_of(64, 3.0), width_of(8, 16), width_of(8, 0.5)] == [4, 6, 21, 1, 16]


def test_first_values():
    _, tuning = begun("llama", width=48)
    for name, parameter in tuning.parameters.items():
        if name.endswith(".down"):
            assert 0.9 / 8 < parameter.abs().max() <= 1 / 8
            assert parameter.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1) and abs(parameter.mean()) < 0.01
        else:
            assert parameter.abs().max() == 0
    again, other = begun("llama", width=48)[1], begun("llama", seed=1, width=48)[1]
    drawn = [name for name in tuning.parameters if name.endswith(".down")]
    assert len({tuning.parameters[name].sum().item() for name in drawn}) == len(drawn)
    assert all(torch.equal(again.parameters[name], tuning.parameters[name]) for name in drawn)
    assert not any(torch.equal(other.parameters[name], tuning.parameters[name]) for name in drawn)


def test_an_architecture_without_known_sublayers_is_refused():
    with pytest.raises(LookupError, match="not known for mamba"):
        adapter.build(tiny("mamba"), Adapter())


def gradients(model: Any, tuning: Any) -> tuple[float, dict[str, torch.Tensor]]:
    documents = some_documents([9, 14, 6])
    for parameter in tuning.parameters.values():
        parameter.grad = None
    torch.manual_seed(5)
    loss = prepare(model, Proof(True, True, ()), "sdpa").loss(make_row(documents, [0, 1, 2]))
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in tuning.parameters.items() if parameter.grad is not None}


@variants
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "phi", "gpt_oss"])
def test_recomputing_blocks_changes_no_gradient(name, variant):
    model, tuning = begun(name, variant=variant, dropout=0.2)
    method.place(model, random(tuning))
    tuning.train()
    plain = gradients(model, tuning)
    recompute_blocks(model)
    loss, found = gradients(model, tuning)
    assert loss == plain[0] and found.keys() == plain[1].keys() == tuning.parameters.keys()
    assert all(torch.equal(found[key], value) for key, value in plain[1].items())


@variants
def test_recomputing_keeps_only_the_blocks_inputs(variant):
    def kept(recompute: bool) -> int:
        model, tuning = begun("llama", variant=variant)
        method.place(model, random(tuning))
        forward = prepare(model, Proof(True, True, ()), "sdpa")
        if recompute:
            recompute_blocks(model)
        sizes = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward.loss(make_row(some_documents([9, 14, 6]), [0, 1, 2]))
        return sum(sizes)

    assert kept(True) < 0.25 * kept(False)


def test_a_parallel_adapter_in_two_threads_at_once():
    """Each pass adds what it read itself, whoever else is between norm and MLP."""
    model, tuning = begun("llama", variant="parallel")
    slots.place(model, random(tuning).adapter)
    prompts = [some_ids(7, seed)[None] for seed in range(2)]
    with torch.no_grad():
        alone = [model(ids).logits for ids in prompts]
    both, found = threading.Barrier(2, timeout=30), {}
    norm = model.model.layers[0].post_attention_layernorm

    def wait(*_: Any) -> None:
        both.wait()  # both have read before either adds

    norm.register_forward_hook(wait)

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = model(prompts[number]).logits

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(found[number], alone[number], atol=1e-6) for number in range(2))


def test_nothing_of_a_pass_is_kept_behind_it():
    model, tuning = begun("llama", variant="parallel")
    slots.place(model, tuning.adapter)
    with torch.no_grad():
        model(some_ids(4)[None])
    heard = vars(model.model.layers[0].post_attention_layernorm)["forward"].args[1]
    assert heard == {}


@variants
def test_answers_with_a_cache_are_those_without(variant):
    model, tuning = begun("llama", variant=variant)
    slots.place(model, random(tuning).adapter)
    ids = some_ids(8)[None]
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole, rtol=1e-4, atol=1e-4)


def test_two_adapters_at_one_place_are_a_mistake_of_ours():
    model, tuning = begun("llama", variant="parallel")
    _, other = begun("llama", variant="houlsby")
    slots.place(model, tuning.adapter)
    with pytest.raises(AssertionError, match="another adapter stands at this LlamaMLP"):
        slots.place(model, other.adapter)


def test_a_stretch_of_a_row_is_changed_as_a_document_is():
    made, h, x = bottleneck(), torch.randn(4, 8), torch.randn(4, 8)
    assert made.served_at("layers.0.mlp") == ("layers.0.mlp", "layers.0.mlp")
    assert torch.equal(made.changed(nn.Identity(), x, h), made.added(h, h)), "it reads what it changes"
    beside = bottleneck(reads="norm", adds="mlp")
    assert beside.served_at("layers.0") == ("layers.0.mlp", "layers.0.norm")
    assert torch.equal(beside.changed(nn.Identity(), x, h), beside.added(h, x))
