"""Products of many adapters at once against each token's own, by the definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.nf4 import Nf4Linear, quantize, weight_of
from tunesmith.serve.builtin.low_rank import Group, dtype_of, factors_of
from tunesmith.serve.builtin.stack import Stacks

Given = dict[int, tuple[Tensor, Tensor, Tensor | None]]
ROWS = {
    "in order": [("a", 2), ("b", 2), ("c", 2)],
    "uneven": [("c", 1), ("a", 3), ("b", 2)],
    "with the base": [("", 2), ("a", 1), ("", 1), ("b", 2), ("c", 1)],
    "long ones": [("a", 20), ("b", 1), ("c", 2), ("", 30)],
    "one alone": [("b", 5)],
    "one twice": [("a", 1), ("b", 1), ("a", 2)],
    "the base alone": [("", 4)],
}


def layer_of(kind: str, inner: int, out: int) -> Any:
    if kind == "nf4":
        layer = Nf4Linear(inner, out, False, True, torch.float32)
        layer.exchange(quantize(torch.randn(out, inner), True))
        return layer
    if kind == "conv1d":
        return Conv1D(out, inner).requires_grad_(False)
    return nn.Linear(inner, out, bias=kind == "biased").requires_grad_(False)


def drawn(layers: list[Any], numbers: list[int], rank: int, scaled: bool) -> Given:
    given: Given = {}
    for number in numbers:
        out = weight_of(layers[number]).shape[0]
        beyond = 0.3 * torch.randn(out) if scaled else None
        given[number] = torch.randn(rank, 64) * 0.2, torch.randn(out, rank) * 0.2, beyond
    return given


def by_definition(layer: Any, x_TI: Tensor, spans: list[tuple[int, int, str]], adapters: dict[str, Given], number: int) -> Tensor:
    y_TO = x_TI @ weight_of(layer).T
    for start, end, name in spans:
        if name in adapters and number in adapters[name]:
            down, up, beyond = adapters[name][number]
            y_TO[start:end] += x_TI[start:end] @ down.T @ up.T
            if beyond is not None:
                y_TO[start:end] *= 1 + beyond
    return y_TO if layer.bias is None else y_TO + layer.bias


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("kind", ["plain", "biased", "conv1d", "nf4"])
def test_every_token_goes_by_its_own(kind: str, row: str) -> None:
    torch.manual_seed(0)
    layers = [layer_of(kind, 64, 48), layer_of(kind, 64, 16)]
    group = Group(0, layers)
    stacks = Stacks([group])
    adapters = {
        "a": drawn(layers, [0, 1], 3, False),
        "b": drawn(layers, [1], 4, True),  # DoRA, beside one of the layers alone
        "c": drawn(layers, [0, 1], 2, row != "uneven"),
    }
    for name, given in adapters.items():
        stacks.add(name, {0: factors_of(given, torch.float32)})
    spans, at = [], 0
    for name, count in ROWS[row]:
        spans.append((at, at + count, name))
        at += count
    x = torch.randn(1, at, 64)
    share = stacks.share(spans, "cpu")
    assert group.work(share).is_idle == (row == "the base alone")
    for number, layer in enumerate(layers):
        found = group.output(number, x, share)
        assert torch.allclose(found[0], by_definition(layer, x[0], spans, adapters, number), atol=1e-5), number
    with torch.inference_mode():
        inner = x.clone()
        both = [group.output(number, inner, share)[0] for number in (0, 1)]
    assert all(torch.allclose(y, by_definition(layers[n], x[0], spans, adapters, n), atol=1e-5) for n, y in enumerate(both))


def test_another_input_is_computed_anew() -> None:
    """What was kept for the next layer is not taken for another tensor, nor for one that was changed."""
    layers = [layer_of("plain", 64, 8), layer_of("plain", 64, 8)]
    group = Group(0, layers)
    stacks = Stacks([group])
    adapters = {name: drawn(layers, [0, 1], 2, False) for name in "ab"}
    for name, given in adapters.items():
        stacks.add(name, {0: factors_of(given, torch.float32)})
    spans = [(0, 1, "a"), (1, 2, "b")]
    share = stacks.share(spans, "cpu")
    x, other = torch.randn(1, 2, 64), torch.randn(1, 2, 64)
    group.output(0, x, share)
    assert torch.allclose(group.output(1, other, share)[0], by_definition(layers[1], other[0], spans, adapters, 1), atol=1e-5)
    group.output(0, x, share)
    x.add_(1)
    assert torch.allclose(group.output(1, x, share)[0], by_definition(layers[1], x[0], spans, adapters, 1), atol=1e-5)


def test_values_that_are_not_finite_stay_with_their_own_tokens() -> None:
    layers = [layer_of("plain", 64, 8)]
    group = Group(0, layers)
    stacks = Stacks([group])
    for name in "abc":
        given = drawn(layers, [0], 2, False)
        if name == "b":
            given[0][1][:] = torch.inf
        stacks.add(name, {0: factors_of(given, torch.float32)})
    for counts in ([1, 1, 1], [1, 2, 1]):
        ends = [sum(counts[: at + 1]) for at in range(3)]
        spans = [(end - count, end, name) for name, count, end in zip("abc", counts, ends, strict=True)]
        y = group.output(0, torch.randn(1, ends[-1], 64), stacks.share(spans, "cpu"))[0]
        own = slice(*spans[1][:2])
        assert not y[own].isfinite().any() and y[: own.start].isfinite().all() and y[own.stop :].isfinite().all()
    stacks.remove("b")
    stacks.add("d", {0: factors_of({0: (torch.ones(1, 64), torch.ones(8, 1), None)}, torch.float32)})
    y = group.output(0, torch.randn(1, 2, 64), stacks.share([(0, 1, "a"), (1, 2, "d")], "cpu"))
    assert y.isfinite().all(), "nothing is left of it in the slot"


def test_a_row_of_another_length_is_refused() -> None:
    group = Group(0, [layer_of("plain", 64, 8)])
    stacks = Stacks([group])
    stacks.add("a", {0: factors_of(drawn(group.layers, [0], 2, False), torch.float32)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="called with 3 tokens of a row of 2"):
        group.output(0, torch.randn(1, 3, 64), stacks.share([(0, 2, "a")], "cpu"))


def test_factors_take_their_own_size() -> None:
    layers = [layer_of("plain", 64, 48), layer_of("plain", 64, 16)]
    factors = factors_of(drawn(layers, [0, 1], 3, True), torch.bfloat16)
    assert sum(tensor.untyped_storage().nbytes() for tensor in factors.tensors) == 2 * (3 * 2 * 64 + 3 * (48 + 16) + 48 + 16)
    assert dtype_of(layers[0]) is torch.float32 and dtype_of(layer_of("nf4", 64, 8)) is torch.float32
