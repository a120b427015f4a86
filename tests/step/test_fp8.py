from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.methods import method
from tunesmith.methods.settings import LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import nf4, products, slots
from tunesmith.step import fp8

SIZES: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=96
)


def emulated(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """The reference: both operands rounded to 8 bits, row by row, the product in fp64."""

    def through(rows: torch.Tensor) -> torch.Tensor:
        scale = rows.abs().amax(1, keepdim=True) / 448
        return (rows / scale).to(torch.float8_e4m3fn).double() * scale.double()

    return through(x_NI) @ through(weight_OI).T


def tuned_llama() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES)).eval().requires_grad_(False)
    tuning = method.build(model, LoRA(rank=4), quantized=False, device="cpu")
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight, ""), LoRA(rank=4))
    method.place(model, tuning)
    return model, tuning


def loss(model: Any) -> torch.Tensor:
    ids = torch.arange(40)[None] * 7 % 96
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def test_products_are_those_of_rounded_operands() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48, bias=False)
    x_NI, dy_NO = torch.randn(33, 64) * 7, torch.randn(33, 48) / 100
    product = fp8.product_of(layer)
    torch.testing.assert_close(product.forward(x_NI).double(), emulated(x_NI, layer.weight.detach()), rtol=1e-3, atol=1e-4)
    backward = emulated(dy_NO, layer.weight.detach().T.contiguous())
    torch.testing.assert_close(product.backward(dy_NO).double(), backward, rtol=1e-3, atol=1e-6)
    exact = x_NI @ layer.weight.detach().T
    assert 0.02 < (product.forward(x_NI) - exact).norm() / exact.norm() < fp8.LARGEST


def test_a_token_of_zeros_and_a_matrix_of_zeros_stay_zero() -> None:
    layer = torch.nn.Linear(32, 16, bias=False)
    x_NI = torch.randn(4, 32)
    x_NI[2] = 0
    y_NO = fp8.product_of(layer).forward(x_NI)
    assert torch.isfinite(y_NO).all() and (y_NO[2] == 0).all() and (y_NO[1] != 0).any()


def test_over_nf4_what_the_codes_stand_for_is_rounded_and_nothing_is_kept() -> None:
    torch.manual_seed(0)
    codes = nf4.quantize(torch.randn(48, 64), True)
    layer = nf4.Nf4Linear(64, 48, False, True, torch.float32)
    layer.weight = torch.nn.Parameter(codes.codes_OI, requires_grad=False)
    layer.absmax, layer.nested_absmax, layer.offset = codes.absmax, codes.nested_absmax, codes.offset  # type: ignore[assignment]
    x_NI, dy_NO, weight_OI = torch.randn(33, 64), torch.randn(33, 48), layer.dequantized()
    product = fp8.product_of(layer)
    torch.testing.assert_close(product.forward(x_NI).double(), emulated(x_NI, weight_OI), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(product.backward(dy_NO).double(), emulated(dy_NO, weight_OI.T.contiguous()), rtol=1e-3, atol=1e-3)


def test_layers_that_err_too_much_are_left_and_told() -> None:
    model, tuning = tuned_llama()
    down, up = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"
    with torch.no_grad():  # one channel between the two stands out in the one matrix and is small in the other: all else vanishes beside it
        model.get_submodule(down).weight[:, 3] = 1e4
        model.get_submodule("model.layers.0.mlp.up_proj").weight[3] /= 1e6
    eighths = fp8.of_model(model, tuning.adapter)
    assert set(eighths.paths) == set(tuning.adapter)
    plain = loss(model).item()
    seen: list[torch.Tensor] = []

    def learn() -> None:
        seen.append(loss(model))
        seen[0].backward()

    told = fp8.calibrate(eighths, learn)
    assert seen[0].item() == plain, "what is measured is not changed by it"
    assert set(eighths.left) == {down, up} and eighths.left[down] > 0.2 and eighths.left[up] > 0.2
    assert len(told) == 1 and down in told[0] and "2 of 14" in told[0]


def test_on_and_off() -> None:
    model, tuning = tuned_llama()
    plain = loss(model)
    eighths = fp8.of_model(model, tuning.adapter)
    assert fp8.calibrate(eighths, lambda: loss(model).backward()) == []
    eighths.on()
    ours = loss(model)
    gradients = torch.autograd.grad(ours, list(tuning.parameters.values()))
    eighths.off()
    assert ours.item() != plain.item() and abs(ours.item() - plain.item()) < 0.01 * plain.item()
    for one, other in zip(gradients, torch.autograd.grad(plain, list(tuning.parameters.values())), strict=True):
        assert (one - other).norm() <= fp8.TOLERANCE * other.norm()
    assert loss(model).item() == plain.item()


def test_sides_that_the_kernel_does_not_take_are_no_candidates() -> None:
    model = torch.nn.ModuleDict({"fits": torch.nn.Linear(32, 16), "odd": torch.nn.Linear(32, 10)})
    assert fp8.of_model(model, ["fits", "odd"]).paths == ("fits",)


@pytest.mark.parametrize(("eight", "stays"), [(2.0, True), (2.019, True), (2.03, False), (float("nan"), False)])
def test_a_loss_that_drifts_ends_it(eight: float, stays: bool) -> None:
    state = SimpleNamespace(is_on=True)
    held: Any = SimpleNamespace(on=lambda: setattr(state, "is_on", True), off=lambda: setattr(state, "is_on", False))
    said = fp8.drifted(held, lambda: eight if state.is_on else 2.0)
    assert state.is_on == stays and bool(said) != stays


def test_it_is_impossible_on_a_cpu_and_says_what_it_needs() -> None:
    assert "8.9" in fp8.impossible(torch.device("cpu"))


def test_methods_named_here_go_by_our_products() -> None:
    model, tuning = tuned_llama()
    path = next(iter(tuning.adapter))
    called: list[torch.Tensor] = []
    plain = slots.own_forward(model.get_submodule(path), torch.zeros(2, 64))

    def forward(x_NI: torch.Tensor) -> torch.Tensor:
        called.append(x_NI)
        return plain.clone()

    products.exchange(model.get_submodule(path), products.Product(forward, lambda dy: dy))
    loss_of = model.get_submodule(path)(torch.zeros(2, 64))
    assert called and loss_of.shape == plain.shape
