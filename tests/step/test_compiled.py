from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tunesmith.data.corpus.batches import Row
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import attention, nf4, slots
from tunesmith.models.proof import Proof
from tunesmith.step import compiled, forward, recompute
from tunesmith.step.compiled import SHORTEST, Compiled

SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=96
)
ROWS = ((20, 13), (50,), (16, 17, 18, 5), (64,))


def tiny(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    made: Any = Qwen3ForCausalLM(Qwen3Config(**SIZES)) if kind == "qwen3" else LlamaForCausalLM(LlamaConfig(**SIZES))
    return made.eval().requires_grad_(False)


def quantised(model: Any) -> Any:
    for place in slots.linears(model):
        codes = nf4.quantize(model.get_submodule(place.path).weight, True)
        layer = nf4.Nf4Linear(place.in_features, place.out_features, False, True, torch.float32)
        layer.weight = torch.nn.Parameter(codes.codes_OI, requires_grad=False)
        layer.absmax, layer.nested_absmax, layer.offset = codes.absmax, codes.nested_absmax, codes.offset  # type: ignore[assignment]
        model.set_submodule(place.path, layer)
    return model


def tuned(model: Any, name: str, **values: Any) -> Any:
    """The method placed, its tensors moved off their first values, so that every one has a gradient."""
    settings = SETTINGS[name](**values)
    tuning = method.build(model, settings, quantized=False, device="cpu")
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight, ""), settings)
    for parameter in tuning.parameters.values():
        parameter.data += torch.randn_like(parameter) * 0.02
    method.place(model, tuning)
    return tuning


def row(lengths: tuple[int, ...]) -> Row:
    tokens, numbers = sum(lengths), torch.Generator().manual_seed(sum(lengths))
    ids_T = torch.randint(0, 96, (tokens,), generator=numbers)
    hidden_N = torch.arange(0, tokens - 1, 2)
    return Row(ids_T, lengths, tuple(range(len(lengths))), hidden_N, ids_T[hidden_N + 1], tokens, tokens)


def gradients(model: Any, tuning: Any, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    computed = forward.Forward(model, own_head=True, packed=True)
    loss = computed.loss(row(lengths))
    found = torch.autograd.grad(loss, list(tuning.parameters.values()), allow_unused=True)
    return [loss.detach(), *[gradient for gradient in found if gradient is not None]]


def switched(model: Any, tuning: Any, compiler: str, level: str = "none", rows: tuple[tuple[int, ...], ...] = ROWS) -> Compiled:
    """Compares every row both ways."""
    forward.prepare(model, Proof(True, True, ()), "sdpa")
    switch = compiled.place(model, compiler)
    recompute.place(model, level)
    plain = [gradients(model, tuning, lengths) for lengths in rows]
    assert switch.graphs == 0
    switch.on()
    try:
        for lengths, expected in zip(rows, plain, strict=True):
            for ours, theirs in zip(gradients(model, tuning, lengths), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())
            assert AttentionInterface()[attention.NAME] is attention.packed_attention, "other models are not told of the compiler"
    finally:
        switch.off()
    assert switch.graphs > 0
    return switch


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()


def test_compiled_blocks_learn_the_same_and_all_blocks_and_lengths_share_two_graphs() -> None:
    model = tiny()
    switch = switched(model, tuned(model, "lora", rank=4), "aot_eager", "blocks")
    assert (switch.kinds, switch.graphs) == (1, 2)


@pytest.mark.parametrize("name", ["pissa", "adapter", "full", "prefix"])
def test_every_method_that_is_compiled(name: str) -> None:
    model = tiny()
    switch = switched(model, tuned(model, name), "aot_eager")
    assert switch.graphs <= 2 * switch.kinds


def test_over_nf4_no_matrix_is_kept_for_the_backward_pass() -> None:
    model = quantised(tiny())
    tuning = tuned(model, "lora", rank=4)
    switch = switched(model, tuning, "aot_eager")
    assert switch.graphs == 2
    kept: list[int] = []
    switch.on()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradients(model, tuning, (20, 13))
    switch.off()
    matrix = SIZES["hidden_size"] * SIZES["intermediate_size"]
    assert kept and max(kept) < matrix, "codes are half of a matrix's numbers, activations of 33 tokens fewer still"


def test_other_families_and_dropout() -> None:
    model = tiny("qwen3")
    tuning = tuned(model, "lora", rank=4, dropout=0.3)
    forward.prepare(model, Proof(True, True, ()), "sdpa")
    switch = compiled.place(model, "aot_eager")
    tuning.train()
    torch.manual_seed(5)
    plain = gradients(model, tuning, (30, 9))
    switch.on()
    try:
        torch.manual_seed(5)
        ours = gradients(model, tuning, (30, 9))
    finally:
        switch.off()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def test_what_is_short_or_has_no_gradient_goes_the_plain_way() -> None:
    model = tiny()
    tuning = tuned(model, "lora", rank=4)
    computed = forward.prepare(model, Proof(True, True, ()), "sdpa")
    switch = compiled.place(model, "aot_eager")
    switch.on()
    try:
        gradients(model, tuning, (SHORTEST - 1,))
        computed.mean_loss([row((40, 3))])
    finally:
        switch.off()
    assert switch.graphs == 0


def test_a_compiler_that_begins_again_and_again_is_stopped() -> None:
    switch = Compiled(kinds=1, compiler="eager", graphs=compiled.MOST)
    with pytest.raises(compiled.TooManyGraphs):
        switch.backend(torch.fx.symbolic_trace(torch.nn.Identity()), [torch.zeros(1)])
    switch.settled = True
    assert switch.backend(torch.fx.symbolic_trace(torch.nn.Identity()), [torch.zeros(1)])(torch.ones(1)) == 1, "a run goes on"


def test_without_a_compiler_it_is_impossible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in compiled.impossible(torch.device("cpu"))
    assert "mps" in compiled.impossible(torch.device("mps"))


def test_it_pays_for_long_runs_only() -> None:
    cpu = torch.device("cpu")
    enough = compiled.SECONDS["cpu"] / compiled.SAVED["cpu"] * compiled.RATES["cpu"]
    assert compiled.pays(1.01 * enough, cpu, torch.float32, 1)
    assert not compiled.pays(0.99 * enough, cpu, torch.float32, 1)
    assert not compiled.pays(1.01 * enough, cpu, torch.float32, 2), "twice as fast, half as much to save"
    assert not compiled.pays(1.01 * enough, cpu, torch.bfloat16, 1)
