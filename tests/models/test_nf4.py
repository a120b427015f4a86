"""NF4 linear layers: what they compute, keep and let through. The values themselves are judged in `oracle/test_bitsandbytes.py`."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models import nf4, workspace
from tunesmith.models.nf4 import Nf4Config, Nf4Linear, Nf4Quantizer, dequantize, quantize

LEVELS = nf4.levels()


def filled(out=6, inner=128, bias=True, double=True, dtype=torch.float32):
    """A layer with known codes, and the matrix that it stands for."""
    torch.manual_seed(0)
    layer: Any = Nf4Linear(inner, out, bias, double, dtype)
    q = quantize(torch.randn(out, inner, dtype=dtype), double)
    layer.weight.data.copy_(q.codes_OI)
    layer.absmax.copy_(q.absmax)
    if double:
        layer.nested_absmax.copy_(q.nested_absmax)
        layer.offset.copy_(q.offset)
    if bias:
        layer.bias.data.copy_(torch.randn(out))
    return layer


def test_values_are_levels_times_the_largest_of_their_block():
    weight_OI = torch.stack([torch.linspace(-2, 2, 64), torch.linspace(0, 0.5, 64)])
    q = quantize(weight_OI, double=False)
    assert q.absmax.tolist() == [2.0, 0.5] and q.codes_OI.shape == (2, 32) and q.codes_OI.dtype == torch.uint8
    back_OI = dequantize(q, (2, 64), torch.float32)
    nearest = LEVELS[(weight_OI / q.absmax[:, None]).sub(LEVELS[:, None, None]).abs().argmin(0)] * q.absmax[:, None]
    torch.testing.assert_close(back_OI, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_given_matrix_is_left_as_it_was(dtype):
    weight_OI = torch.randn(5, 64, dtype=dtype)
    before = weight_OI.clone()
    quantize(weight_OI, double=True)
    assert torch.equal(weight_OI, before)


def test_two_codes_share_a_byte_the_first_in_the_upper_half():
    weight_OI = torch.zeros(1, 64)
    weight_OI[0, 0], weight_OI[0, 1] = 1.0, -1.0
    assert quantize(weight_OI, double=False).codes_OI[0, 0].item() == (15 << 4) | 0


def test_what_it_takes_in_memory():
    layer = filled(out=64, inner=1024, bias=False)
    held = sum(t.numel() * t.element_size() for t in [*layer.parameters(), *layer.buffers()])
    assert held == 64 * 1024 // 2 + 1024 + 4 * 4 + 4  # codes, 8-bit scales, their 4 fp32 scales, the offset


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_a_linear_layer_over_the_dequantised_matrix(double, dtype):
    layer = filled(double=double, dtype=dtype)
    x = torch.randn(2, 3, 128, dtype=dtype)
    expected = nn.functional.linear(x, layer.dequantized(), layer.bias)
    assert torch.equal(layer(x), expected) and layer(x).dtype == dtype


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_through_and_no_matrix_is_kept(bias):
    layer = filled(bias=bias)
    x = torch.randn(5, 128, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = layer(x)
    assert not [tensor for tensor in kept if tensor.numel() >= 6 * 128 and tensor.dtype.is_floating_point]
    direction = torch.randn(y.shape)
    y.backward(direction)
    torch.testing.assert_close(x.grad, direction @ layer.dequantized())
    assert layer.weight.grad is None


@pytest.mark.parametrize("double", [True, False])
def test_codes_of_another_matrix_are_exchanged_and_come_back(double):
    layer, other = filled(double=double), torch.randn(6, 128)
    held = {key: value.clone() for key, value in layer.state_dict().items()}
    codes = layer.requantised(other)
    assert layer.is_double == double and all(torch.equal(value, held[key]) for key, value in layer.state_dict().items())
    aside = layer.exchange(codes)
    assert torch.equal(layer.dequantized(), layer.rounded(other)) and torch.equal(
        layer.rounded(other), nf4.rounded(other, double, layer.dtype)
    )
    assert layer.weight is not held["weight"] and not layer.weight.requires_grad
    assert set(layer.state_dict()) == set(held), "the layer is made of the same tensors"
    layer.exchange(aside)
    assert all(torch.equal(value, held[key]) for key, value in layer.state_dict().items())


def test_another_matrix_has_the_layers_shape():
    with pytest.raises(AssertionError):
        filled().requantised(torch.randn(128, 6))


def test_rounded_is_fp32_with_the_rounding_of_the_layers_dtype():
    other = torch.randn(6, 128)
    fine, coarse = filled().rounded(other), filled(dtype=torch.bfloat16).rounded(other)
    assert fine.dtype == coarse.dtype == torch.float32 and torch.equal(fine.bfloat16().float(), coarse)
    assert nf4.is_nf4(filled()) and not nf4.is_nf4(nn.Linear(4, 4))


def test_rows_must_be_whole_blocks():
    assert nf4.fits(128) and not nf4.fits(100)
    with pytest.raises(AssertionError):
        quantize(torch.randn(4, 100), True)
    with pytest.raises(AssertionError):
        Nf4Linear(100, 4, False, True, torch.float32)


def test_it_moves_and_saves_like_any_module():
    layer, other = filled(), Nf4Linear(128, 6, True, True, torch.float32)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dequantized(), layer.dequantized())
    assert set(layer.state_dict()) == {"weight", "absmax", "nested_absmax", "offset", "bias"}
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_matrices_of_all_linear_layers_read_alike():
    layers: list[Any] = [nn.Linear(128, 6), Conv1D(6, 128), filled()]
    for layer in layers:
        assert nf4.is_linear(layer) and nf4.shape_of(layer) == (128, 6) and nf4.weight_of(layer).shape == (6, 128)
        x = torch.randn(3, 128)
        torch.testing.assert_close(x @ nf4.weight_of(layer).T + layer.bias, layer(x))
    assert [nf4.is_transposed(layer) for layer in layers] == [False, True, False]
    assert nf4.is_transposed(Nf4Linear(64, 2, False, True, torch.float32, transposed=True))


def test_a_subclass_of_linear_is_not_taken_for_one():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert not nf4.is_linear(Scaled(4, 4)) and not nf4.is_linear(nn.Embedding(4, 4))


def test_only_the_named_layers_are_exchanged():
    model: Any = nn.Sequential(nn.Linear(64, 8), nn.Linear(64, 8, bias=False), Conv1D(8, 64))
    quantizer = Nf4Quantizer(Nf4Config(("0", "2")))
    quantizer._process_model_before_weight_loading(model)
    assert [type(layer).__name__ for layer in model] == ["Nf4Linear", "Linear", "Nf4Linear"]
    assert [layer.transposed for layer in (model[0], model[2])] == [False, True]
    assert model[0].weight.device.type == "meta" and model[0].bias is not None
    assert quantizer.param_needs_quantization(model, "0.weight")
    assert not quantizer.param_needs_quantization(model, "0.bias") and not quantizer.param_needs_quantization(model, "1.weight")


def model_of(*layers):
    return nn.Sequential(*layers)


def count_dequantisations(monkeypatch):
    calls: list[int] = []
    plain = nf4.dequantize

    def counted(*arguments):
        calls.append(1)
        return plain(*arguments)

    monkeypatch.setattr(nf4, "dequantize", counted)
    return calls


def test_the_first_layers_keep_their_matrices_within_a_budget(monkeypatch):
    model = model_of(filled(out=6), nn.Linear(3, 3), filled(out=8), filled(out=2))
    x = torch.randn(5, 128)
    expected = [model[i](x) for i in (0, 2, 3)]
    keys, held = set(model.state_dict()), sum(t.numel() for t in model.state_dict().values())
    assert nf4.keep_dense(model, 4 * 128 * 14 + 1) == nf4.dense_bytes(model) == 4 * 128 * 14, "the third would not fit"
    calls = count_dequantisations(monkeypatch)
    assert all(torch.equal(model[i](x), y) for i, y in zip((0, 2, 3), expected, strict=True)), "the same numbers to the bit"
    assert len(calls) == 1
    assert set(model.state_dict()) == keys and sum(t.numel() for t in model.state_dict().values()) == held


def test_a_smaller_layer_behind_one_that_does_not_fit_is_not_kept():
    """Which layers are kept depends on the budget alone, so a budget of what was kept keeps the same."""
    model = model_of(filled(out=6), filled(out=8), filled(out=2))
    kept = nf4.keep_dense(model, 4 * 128 * 8)
    assert kept == 4 * 128 * 6
    nf4.keep_dense(model, 10**9)
    assert nf4.keep_dense(model, kept) == kept == nf4.dense_bytes(model)
    assert nf4.keep_dense(model, 0) == nf4.dense_bytes(model) == 0


def test_backward_uses_what_is_kept(monkeypatch):
    layer, x = filled(), torch.randn(5, 128, requires_grad=True)
    nf4.keep_dense(layer, 10**6)
    calls = count_dequantisations(monkeypatch)
    y = layer(x)
    direction = torch.randn(y.shape)
    y.backward(direction)
    assert calls == [] and torch.equal(nf4.weight_of(layer), layer.dequantized())
    torch.testing.assert_close(x.grad, direction @ layer.dequantized())


@pytest.mark.parametrize("change", ["exchange", "load", "in place", "double"])
def test_other_codes_are_never_answered_with_what_was_kept(change):
    layer, other = filled(), filled(out=6)
    q = quantize(torch.randn(6, 128), True)
    nf4.keep_dense(layer, 10**6)
    if change == "exchange":
        layer.exchange(q)
    elif change == "load":
        other.exchange(q)
        layer.load_state_dict(other.state_dict())
    elif change == "in place":
        with torch.no_grad():
            layer.absmax.add_(1)
    else:
        layer.nested_absmax.mul_(2)
    assert torch.equal(nf4.weight_of(layer), layer.dequantized())
    assert nf4.dense_bytes(layer) == 0, "what is of no use is not held"
    assert nf4.keep_dense(layer, 10**6) > 0 and torch.equal(nf4.weight_of(layer), layer.dequantized())


def test_a_matrix_of_ones_own_may_be_written_to():
    layer = filled()
    nf4.keep_dense(layer, 10**6)
    expected = layer.dequantized()
    layer.dequantized().zero_()
    assert torch.equal(nf4.weight_of(layer), expected)


@pytest.fixture
def interpreted(monkeypatch):
    """As on a GPU: the kernel, through Triton's interpreter, and a workspace."""
    pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch")
    workspace.release()
    monkeypatch.setattr(nf4.gpu, "available", lambda device: True)
    monkeypatch.setattr(nf4, "_HOLDS", {})
    monkeypatch.setattr(nf4, "_WANTED", [True])  # a run before may have begun with the plain way
    yield
    workspace.release()


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpus_way_gives_the_same_numbers(double, dtype, interpreted, monkeypatch):
    layer = filled(double=double, dtype=dtype)
    monkeypatch.setattr(nf4, "_by_kernel", lambda q, out: out.copy_(nf4._by_bitsandbytes(q, tuple(out.shape), out.dtype)))
    x: Any = torch.randn(5, 128, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.backward(torch.ones_like(y))
    with monkeypatch.context() as plain:
        plain.setattr(nf4.gpu, "available", lambda device: False)
        assert torch.equal(y, nn.functional.linear(x, layer.dequantized()) + layer.bias)
        assert torch.equal(x.grad, torch.ones_like(y) @ layer.dequantized())
    assert workspace.held_bytes() == 6 * 128 * dtype.itemsize


def test_matrices_that_are_held_at_once_do_not_share_a_workspace(interpreted, monkeypatch):
    monkeypatch.setattr(nf4, "_by_kernel", lambda q, out: out.copy_(nf4._by_bitsandbytes(q, tuple(out.shape), out.dtype)))
    torch.manual_seed(1)
    layers = [filled(), filled(out=8), filled(out=6, double=False)]
    for layer in layers:
        layer.exchange(quantize(torch.randn(layer.out_features, 128), layer.is_double))
    joined = torch.cat([nf4.weight_of(layer) for layer in layers])
    assert torch.equal(joined, torch.cat([layer.dequantized() for layer in layers]))


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_kernel_that_is_wrong_is_not_used_and_said_so_once(fault, interpreted, monkeypatch):
    def wrong(q, out):
        if fault == "raises":
            raise RuntimeError("no such architecture\nmore words")
        out.zero_()

    monkeypatch.setattr(nf4, "_by_kernel", wrong)
    layer = filled()
    with pytest.warns(RuntimeWarning, match="no such architecture$" if fault == "raises" else "other values$"):
        found = layer.dequantized()
    assert torch.equal(found, nf4._by_bitsandbytes(layer.quantized(), (6, 128), torch.float32))
    assert torch.equal(nf4.weight_of(layer), found), "without another warning"
