"""A run as it is on a GPU, through Triton's interpreter: every kernel stands where it would stand, and the numbers are the plain ones."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.interpreted import device, rounds_to_even
from tests.tiny_models import some_documents, tiny
from tunesmith.config import Run
from tunesmith.data.corpus.batches import make_row
from tunesmith.methods import lora, method
from tunesmith.methods.settings import LoRA
from tunesmith.models import kernels, nf4, slots, workspace
from tunesmith.models.head import Head
from tunesmith.models.proof import Proof
from tunesmith.step import gpu_kernels
from tunesmith.step.forward import prepare
from tunesmith.step.loss import learned_loss
from tunesmith.train.accelerations import decided

__all__ = ["device", "rounds_to_even"]
pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")

ROW = make_row(some_documents([2, 3]), [0, 1])
NAMES = ["the loss's own kernel", "NF4's own kernel"]


def counting(launched: Counter[str], name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        launched[name] += 1
        return plain(*arguments, **named)

    return counted


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """`kernels.available` says yes; counts the launches of each kernel."""
    from tunesmith.models.kernels import cross_entropy, gated, rms_norm, rotary
    from tunesmith.models.kernels import nf4 as nf4_kernel

    launched: Counter[str] = Counter()
    for module, names in {
        cross_entropy: ["cross_entropy_"],
        gated: ["gated_forward", "gated_backward"],
        nf4_kernel: ["dequantize_into"],
        rms_norm: ["rms_norm_forward", "rms_norm_backward"],
        rotary: ["rotate"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, counting(launched, name, getattr(module, name)))
    monkeypatch.setattr(kernels, "available", lambda device: True)
    monkeypatch.setattr(nf4, "_HOLDS", {})
    yield launched
    workspace.release()
    nf4.use_kernel(True)


def quantised(model: Any) -> Any:
    for place in slots.linears(model):
        linear: Any = model.get_submodule(place.path)
        layer = nf4.Nf4Linear(*nf4.shape_of(linear), linear.bias is not None, True, linear.weight.dtype)
        layer.exchange(nf4.quantize(linear.weight.detach(), True))
        if linear.bias is not None:
            layer.bias.data.copy_(linear.bias)  # type: ignore[union-attr]
        model.set_submodule(place.path, layer)
    return model


def trained(model: Any) -> Any:
    tuning = lora.build(model, LoRA(rank=4))
    torch.manual_seed(0)
    for parameter in tuning.parameters.values():
        parameter.data.normal_(std=0.1)
    method.place(model, tuning)
    return prepare(model, Proof(True, True, ()), "sdpa"), tuning


def found(forward, tuning) -> list[torch.Tensor]:
    loss = forward.loss(ROW, 0.1)
    return [loss.detach(), *torch.autograd.grad(loss, list(tuning.parameters.values()))]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy, where a sigmoid is zero
@pytest.mark.parametrize("name", ["gemma2", "qwen3"])
def test_every_kernel_stands_in_a_run_and_gives_the_plain_numbers(name, tmp_path, as_on_a_gpu):
    forward, tuning = trained(quantised(tiny(name)))
    nf4.use_kernel(False)
    expected = found(forward, tuning)
    assert not as_on_a_gpu
    decision = decided(tmp_path, Run(), forward, tuning, ROW)
    assert decision.warnings == () and set(NAMES) <= set(decision.record["on"])
    as_on_a_gpu.clear()
    torch.testing.assert_close(found(forward, tuning), expected, rtol=1e-4, atol=1e-5)
    assert set(as_on_a_gpu) == {
        "cross_entropy_", "dequantize_into", "gated_backward", "gated_forward", "rms_norm_backward", "rms_norm_forward", "rotate",
    }  # fmt: skip
    assert workspace.held_bytes() == 4 * 64 * 128, "one matrix, the largest"


def test_plain_is_plain(tmp_path, as_on_a_gpu):
    forward, tuning = trained(quantised(tiny("llama")))
    run = Run.model_validate({"train": {"kernels": "plain"}})
    assert decided(tmp_path, run, forward, tuning, ROW).record == {"on": [], "off": []}
    found(forward, tuning)
    assert not as_on_a_gpu


def test_a_wrong_kernel_is_off_and_named(tmp_path, as_on_a_gpu, monkeypatch):
    from tunesmith.models.kernels import cross_entropy

    right = cross_entropy.cross_entropy_
    monkeypatch.setattr(cross_entropy, "cross_entropy_", lambda *given: right(*given) * 1.01)
    monkeypatch.setattr("tunesmith.step.acceleration.of_parts", lambda *given: [])  # each would be tried again, one by one
    forward, tuning = trained(tiny("llama"))
    decision = decided(tmp_path, Run(), forward, tuning, ROW)
    assert NAMES[0] in decision.record["off"] and len(decision.warnings) == 1 and decision.warnings[0].startswith(NAMES[0])
    assert forward.head is not None and not forward.head.in_place


def test_nothing_on_a_cpu_and_nothing_that_would_not_be_called(as_on_a_gpu, monkeypatch):
    forward, _ = trained(tiny("llama"))
    assert [one.name for one in gpu_kernels.of_run(forward)] == NAMES[:1]
    placed = SimpleNamespace(model=forward.model, head=Head(torch.ones(2, 2), None, 1.0, None, nn.Linear(2, 2)))
    assert gpu_kernels.of_run(placed) == [] and gpu_kernels.of_run(SimpleNamespace(model=forward.model, head=None)) == []
    monkeypatch.setattr(kernels, "available", lambda device: False)
    assert gpu_kernels.of_run(forward) == []


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("factor", "softcap"), [(1.0, None), (0.25, None), (0.5, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_in_place_is_the_plain_loss(bias, factor, softcap, dtype, device, monkeypatch):
    monkeypatch.setattr("tunesmith.step.loss.chunk_rows", lambda *given, **named: 16)
    torch.manual_seed(0)
    h_NC = torch.randn(40, 24, device=device, dtype=dtype)
    weight_VC, targets_N = torch.randn(300, 24, device=device, dtype=dtype), torch.randint(300, (40,), device=device)
    bias_V = torch.randn(300, device=device, dtype=dtype) if bias else None
    results: list[list[Any]] = []
    for in_place in (False, True):
        leaves = [h_NC.clone().requires_grad_(), *([bias_V.clone().requires_grad_()] if bias_V is not None else [])]
        head = Head(weight_VC, leaves[1] if bias else None, factor, softcap, in_place=in_place)
        gradient_VC = torch.ones(300, 24, device=device)
        loss = learned_loss(leaves[0], targets_N, head, 0.1, gradient_VC)
        loss.backward()
        with torch.no_grad():
            again = learned_loss(leaves[0], targets_N, head, 0.1)
        assert torch.equal(again, loss), "the loss without gradients is the same"
        results.append([loss.detach(), *[leaf.grad for leaf in leaves], gradient_VC])
    close = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close * theirs.abs().max().item())
