"""Products by matrices in float16 are those in fp32 where the checkpoint had 16 bits, and are not used elsewhere."""

import pytest
import torch
from torch import nn

from tunesmith.methods.lora import LoRA
from tunesmith.models import halves, slots

pytestmark = pytest.mark.skipif(not halves.holds(), reason="torch has no such products on this machine")
ROOMY = 1 << 30


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(256, 512), nn.Linear(512, 128, bias=False)
        for parameter in self.parameters():
            parameter.data = parameter.data.bfloat16().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@torch.no_grad()
def test_what_was_read_in_16_bits_is_computed_as_before() -> None:
    model, x = Two(), torch.randn(2, 3, 256)
    plain = model(x)
    layers = halves.pack(model, ROOMY)
    assert layers == [model.first, model.second]
    found = model(x)
    assert found.shape == plain.shape and not torch.equal(found, plain), "the packed matrices are not used"
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    halves.unpack(layers)
    assert torch.equal(model(x), plain) and not any("tunesmith" in name for layer in layers for name in vars(layer))


def test_the_smallest_of_bfloat16_may_lose_half_a_step_and_fp32_is_left_alone() -> None:
    assert halves.is_exact(torch.tensor([2.0**-20 * 1.0078125, 3e-9, 60000.0]).bfloat16().float())
    assert not halves.is_exact(torch.tensor([1.0 + 2.0**-20])) and not halves.is_exact(torch.tensor([70000.0]))
    model = Two()
    model.first.weight.data = torch.randn(512, 256)
    assert halves.pack(model, ROOMY) == [model.second]


def test_the_budget_bounds_what_is_packed() -> None:
    model = Two()
    assert halves.pack(model, 2 * 512 * 256) == [model.first]
    assert halves.pack(Two(), 100) == []


@torch.no_grad()
def test_a_matrix_that_has_changed_is_packed_again() -> None:
    model, x = Two(), torch.randn(4, 256)
    with halves.packed(model, ROOMY):
        before = model(x)
    model.first.weight.mul_(2)
    with halves.packed(model, ROOMY):
        after = model(x)
    torch.testing.assert_close(after, model(x), rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 0.1


@torch.no_grad()
def test_updates_stand_beside_them_and_may_come_and_go() -> None:
    model, x = Two(), torch.randn(4, 256)
    lora = LoRA(256, 512, 4, 2.0)
    lora.A.normal_()
    lora.B.normal_()
    base = model(x)
    slots.place(model, {"first": lora})
    plain = model(x)
    with halves.packed(model, ROOMY):
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-3)
        slots.lift(model, {"first": lora})
        found = model(x)
        assert not torch.equal(found, base)
        torch.testing.assert_close(found, base, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(x), base)


def test_gradients_go_by_the_plain_matrix() -> None:
    model, x = Two(), torch.randn(4, 256, requires_grad=True)
    plain = torch.autograd.grad(model(x).sum(), x)[0]
    with halves.packed(model, ROOMY):
        assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], plain)
