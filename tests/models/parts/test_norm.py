"""Root-mean-square norms against autograd of the written-out formula, and against the classes' own."""

# mypy: disable-error-code="call-arg,override"

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from tunesmith.models.parts import norm, recipes

EPSILON = 1e-6
CLASSES = {LlamaRMSNorm: "cast_first", Olmo2RMSNorm: "cast_last", GemmaRMSNorm: "one_plus"}


def written_out(x, weight, kind):
    exact = x if x.dtype == torch.float64 else x.float()
    normal = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPSILON)
    if kind.cast_first:
        return weight * normal.to(x.dtype)
    factor = weight.to(normal.dtype)
    return (normal * (1 + factor if kind.one_plus else factor)).to(x.dtype)


def both(x, weight, kind, needs_x=True, needs_weight=True):
    """(output, gradients) by the formula and by the part."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    found = []
    for way in (written_out, lambda x, weight, kind: norm.normed(x, weight, EPSILON, kind)):
        leaves = [x.clone().requires_grad_(needs_x), weight.clone().requires_grad_(needs_weight)]
        y = way(*leaves, kind)
        found.append([y.detach(), *torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad], direction)])
    return found


def drawn(dtype, shape=(3, 7, 64)):
    torch.manual_seed(1)
    return (torch.randn(shape) * 3 + 1).to(dtype), (torch.rand(shape[-1]) + 0.5).to(dtype)


@pytest.mark.parametrize("kind", norm.KINDS)
@pytest.mark.parametrize(("needs_x", "needs_weight"), [(True, True), (True, False), (False, True)])
def test_in_fp32_values_and_gradients_are_those_of_the_formula(kind, needs_x, needs_weight):
    theirs, ours = both(*drawn(torch.float32), norm.KINDS[kind], needs_x, needs_weight)
    assert len(ours) == 1 + needs_x + needs_weight
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6 * other.abs().max().item())


@pytest.mark.parametrize("kind", norm.KINDS)
def test_in_bf16_it_rounds_where_the_class_does(kind):
    (y, dx, dweight), (our_y, our_dx, our_dweight) = both(*drawn(torch.bfloat16), norm.KINDS[kind])
    assert our_y.dtype == our_dx.dtype == our_dweight.dtype == torch.bfloat16
    assert (our_y != y).double().mean() < 0.01
    assert (our_dx != dx).double().mean() < 0.1
    torch.testing.assert_close(our_dweight, dweight, rtol=0.02, atol=0.02 * dweight.abs().max().item())


def test_fp64_agrees_with_differences():
    x, weight = (one.requires_grad_() for one in drawn(torch.float64, (2, 3, 5)))
    for kind in norm.KINDS.values():
        assert torch.autograd.gradcheck(lambda x, weight, kind=kind: norm.normed(x, weight, EPSILON, kind), (x, weight))


def test_a_common_part_of_the_gradient_is_not_taken_for_a_layer_norms():
    """The kernel behind it takes away the mean of dy·w, which has to come back."""
    x, weight = drawn(torch.float32)
    x.requires_grad_()
    norm.normed(x, weight, EPSILON, norm.KINDS["cast_first"]).sum().backward()
    ours, x.grad = x.grad, None
    written_out(x, weight, norm.KINDS["cast_first"]).sum().backward()
    torch.testing.assert_close(ours, x.grad, rtol=2e-6, atol=2e-6)


def test_it_keeps_its_input_and_one_number_a_token():
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    x, weight = drawn(torch.float32)
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm.normed(x, weight, EPSILON, norm.KINDS["cast_first"])
    assert sum(kept.values()) == 4 * (x.numel() + 3 * 7 + 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_is_recognised_by_what_it_computes(kind, dtype):
    module = kind(32).to(dtype)
    torch.nn.init.normal_(module.weight)
    forward = norm.forward_of(module, dtype)
    x, _ = drawn(dtype, (2, 5, 32))
    difference = (forward(x) - module(x)).abs()
    assert difference.max() <= (0 if dtype == torch.bfloat16 else 1e-5)
    wanted = norm.KINDS[CLASSES[kind]]
    assert forward.kind.one_plus == wanted.one_plus
    assert dtype == torch.float32 or forward.kind == wanted  # in fp32 nothing is rounded in between


def test_what_is_another_norm_is_left_alone():
    class OtherRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states):
            return super().forward(hidden_states) * 1.001

    class GatedRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states, gate):
            return super().forward(hidden_states) * gate

    for module in (OtherRMSNorm(16), GatedRMSNorm(16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 16)):
        assert norm.forward_of(module, torch.float32) is None


def test_another_dtype_than_the_weights_is_the_classs_own_matter():
    module = LlamaRMSNorm(16)
    forward = norm.forward_of(module, torch.float32)
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    assert torch.equal(forward(x), module(x)) and forward(x).dtype == torch.float32


def test_where_a_kernel_serves_it_makes_the_output_again_too(monkeypatch):
    """A kernel rounds in its own way: what it made only it can make again. The kernels themselves are tested where they are."""
    calls = []

    def forward(x_NC, weight_C, epsilon, one_plus, cast_first):
        calls.append((one_plus, cast_first))
        rstd_N = norm._reciprocal_root(x_NC, epsilon)
        return norm._scaled(x_NC, rstd_N, weight_C, norm.Kind(one_plus, cast_first)) * (1 + 1e-6), rstd_N

    def backward(dy_NC, x_NC, rstd_N, weight_C, one_plus, cast_first, needs_weight):
        assert dy_NC.is_contiguous() and needs_weight is False
        return norm._gradients(dy_NC, x_NC, rstd_N, weight_C, norm.Kind(one_plus, cast_first), True, False)

    monkeypatch.setitem(
        sys.modules, "tunesmith.models.kernels.rms_norm", SimpleNamespace(rms_norm_forward=forward, rms_norm_backward=backward)
    )
    monkeypatch.setattr("tunesmith.models.kernels.available", lambda device: True)
    x, weight = drawn(torch.float32)
    with recipes.remembered() as book:
        y = norm.normed(x.requires_grad_(), weight, EPSILON, norm.KINDS["one_plus"])
        [recipe] = book.recipes.values()
    assert torch.equal(recipe.make(*recipe.inputs).view_as(y), y) and calls == [(True, False)] * 2
    y.sum().backward()
    expected = torch.autograd.grad(written_out(x, weight, norm.KINDS["one_plus"]).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-5)
