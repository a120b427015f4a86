"""PiSSA's module against plain autograd, what it leaves of a base, and its folders."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import method, pissa
from tunesmith.methods.layouts import layout
from tunesmith.methods.parts.decompose import leading
from tunesmith.methods.pissa import PiSSA
from tunesmith.methods.settings import PiSSA as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import Nf4Linear, quantize, weight_of

IDS = some_ids(12)[None]
WEIGHT = torch.randn(32, 64, generator=torch.Generator().manual_seed(3)) * torch.linspace(3, 0.1, 64)


def layer(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """One of WEIGHT, as each class keeps it."""
    torch.manual_seed(1)
    if kind == "nf4":
        made: Any = Nf4Linear(64, 32, True, True, dtype)
        made.exchange(quantize(WEIGHT, True))
        made.bias = nn.Parameter(torch.randn(32, dtype=dtype), requires_grad=False)
        return made
    made = {"linear": lambda: nn.Linear(64, 32), "no bias": lambda: nn.Linear(64, 32, bias=False), "conv1d": lambda: Conv1D(32, 64)}[kind]()
    with torch.no_grad():
        made.weight.copy_(WEIGHT.T if kind == "conv1d" else WEIGHT)
    return made.to(dtype).requires_grad_(False)


def module(learned: float = 0.0, scale: float = 1.5, dropout: float = 0.0) -> PiSSA:
    """With the leading part of WEIGHT, and random steps away from it."""
    made = PiSSA(64, 32, 4, scale, dropout)
    made.start_from(*(part / scale**0.5 for part in leading(WEIGHT, 4, "exact", 0)))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=learned)
    return made


def placed(kind: str, update: PiSSA, dtype: torch.dtype = torch.float32) -> Any:
    base = layer(kind, dtype)
    update.settle(base, lambda: WEIGHT.clone())
    update.attach(base)
    return base


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_is_the_base_to_the_bit(kind, dtype):
    x = torch.randn(7, 64, dtype=dtype)
    assert torch.equal(placed(kind, module(), dtype)(x), layer(kind, dtype)(x))


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d", "nf4"])
@pytest.mark.parametrize("leading_dimensions", [(7,), (2, 3), ()])
def test_value_and_gradients_are_those_of_the_formula(kind, leading_dimensions):
    update = module(learned=0.3)
    base = placed(kind, update)
    x = torch.randn(*leading_dimensions, 64, requires_grad=True)
    y = base(x)
    residual = weight_of(base) if kind == "nf4" else WEIGHT - 1.5 * update.B0 @ update.A0
    expected = nn.functional.linear(x, residual, base.bias) + 1.5 * ((x @ update.A.T) @ update.B.T)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    leaves, direction = [x, update.A, update.B], torch.randn(y.shape)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_dropout_is_on_the_updates_input_and_only_while_training(kind):
    update = module(learned=0.3, dropout=0.5)
    base = placed(kind, update)
    x = torch.randn(50, 64)
    quiet = base(x)
    update.train()
    torch.manual_seed(4)
    noisy = base(x)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(x, 0.5)
    taken = 0 if kind == "nf4" else 1.5 * (dropped @ update.A0.T) @ update.B0.T
    expected = slots.own_forward(base, x) + 1.5 * (dropped @ update.A.T) @ update.B.T - taken
    torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-4)
    noisy.sum().backward()
    assert update.A.grad is not None and update.B.grad is not None and not torch.allclose(noisy, quiet)


def test_no_gradient_of_an_input_that_needs_none():
    y = placed("linear", module())(torch.randn(3, 64))
    assert y.requires_grad and y.grad_fn.needs_input_grad[0] is False
    y.sum().backward()


def test_what_was_learned_outlives_rounding_to_bf16():
    """A and A0 rounded each for itself would lose more than one step of training changes."""
    update = module(learned=1e-3)
    x = torch.randn(200, 64)
    learned = x @ (update.scale * (update.B @ update.A - update.B0 @ update.A0)).T
    down, up = (part.bfloat16().float() for part in update._down_up())
    ours = update.scale * (x @ down.T) @ up.T
    usual = [(p.bfloat16().float() @ q.bfloat16().float()) for p, q in ((update.B, update.A), (update.B0, update.A0))]
    theirs = update.scale * x @ (usual[0] - usual[1]).T
    error, usual_error = ((found - learned).norm() / learned.norm() for found in (ours, theirs))
    assert error < 0.01 and usual_error > 20 * error


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_a_block_that_is_computed_again_gives_the_same_gradients(kind):
    def gradients(recompute: bool) -> list[torch.Tensor]:
        update = module(learned=0.3)
        base = placed(kind, update)
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = checkpoint(base, x, use_reentrant=False) if recompute else base(x)
        return list(torch.autograd.grad(y.square().sum(), [x, update.A, update.B]))

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


def test_a_step_of_the_optimizer_is_seen():
    update = module(learned=0.1)
    base, x = placed("linear", update), torch.randn(3, 64)
    before = base(x)
    assert torch.equal(base(x), before)
    with torch.no_grad():
        update.B.mul_(2)
    torch.testing.assert_close(base(x), x @ update.folded(WEIGHT).T + base.bias, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base(x), before)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_is_the_matrix_that_was_trained(kind, dtype):
    """Over NF4 it is made from the checkpoint's matrix: the same codes come out again."""
    update = module(learned=0.3)
    base, x = placed(kind, update, dtype), torch.randn(9, 64)
    live = base(x.to(dtype)).float()
    folded = x @ update.folded(WEIGHT).T + base.bias.float()
    assert (live - folded).norm() < (1e-5 if dtype == torch.float32 else 1e-2) * folded.norm()
    if kind == "nf4":
        torch.testing.assert_close(update.folded(WEIGHT), weight_of(base).float() + 1.5 * update.B @ update.A, rtol=1e-6, atol=1e-5)


def test_codes_of_the_residual_come_and_go():
    update, base, untouched = module(learned=0.3), layer("nf4"), layer("nf4").state_dict()
    update.settle(base, lambda: WEIGHT.clone())
    for _ in range(2):
        assert all(torch.equal(value, untouched[key]) for key, value in base.state_dict().items()), "to settle changes nothing yet"
        update.attach(base)
        residual = WEIGHT - update._taken()
        assert torch.equal(base.dequantized(), base.rounded(residual)) and not torch.equal(base.weight, untouched["weight"])
        update.detach(base)
    assert all(torch.equal(value, untouched[key]) for key, value in base.state_dict().items()) and "forward" not in vars(base)


def test_the_residual_is_rounded_less_coarsely_and_the_difference_is_known():
    update = module()
    base = layer("nf4")
    plain = ((base.dequantized() - WEIGHT).norm() / WEIGHT.norm()).item()
    update.settle(base, lambda: WEIGHT.clone())
    trained, lora = update.folded(WEIGHT), update.as_lora()
    ours = ((trained - WEIGHT).norm() / WEIGHT.norm()).item()
    assert ours < 0.9 * plain
    for over, weight in (("original", WEIGHT), ("nf4", base.dequantized())):
        served = lora.folded(weight)
        assert update.differences[over] == pytest.approx(((served - trained).norm() / WEIGHT.norm()).item(), rel=1e-3)


def begun(name: str = "llama", seed: int = 0, **settings: Any) -> tuple[Any, Tuning]:
    """A model and its tuning with first values, not in place."""
    model, chosen = tiny(name), Settings(**settings)
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, seed, lambda path: weight_of(model.get_submodule(path)).clone()), chosen)
    return model, tuning


def learned(tuning: Tuning) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)


@pytest.mark.parametrize("niter", [4, "exact"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_first_values_are_the_leading_part_and_the_output_is_the_bases(name, niter):
    model, tuning = begun(name, rank=4, niter=niter)
    before = tiny(name)(IDS).logits
    for path, update in pissa.updates(tuning.adapter).items():
        weight = weight_of(model.get_submodule(path))
        best = torch.linalg.svdvals(weight)[:4].norm()
        assert (update.B @ update.A).norm() > (0.999 if niter == "exact" else 0.97) * best
        assert torch.equal(update.A, update.A0) and torch.equal(update.B, update.B0)
    method.place(model, tuning)
    assert torch.equal(model(IDS).logits, before)


def test_first_values_depend_on_seed_and_path_alone():
    one, again, other, fewer = begun()[1], begun()[1], begun(seed=1)[1], begun(targets=["o"])[1]
    assert all(torch.equal(one.fixed[name], again.fixed[name]) for name in one.fixed)
    assert not any(torch.equal(one.fixed[name], other.fixed[name]) for name in one.fixed)
    assert all(torch.equal(one.fixed[name], fewer.fixed[name]) for name in fewer.fixed) and fewer.fixed


def test_what_is_built():
    tuning = pissa.build(tiny("llama"), Settings(rank=3, targets=["q", "down"], plus_ratio=4), device="meta")
    paths = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    assert list(tuning.adapter) == paths and tuning.layout == "pissa"
    assert list(tuning.parameters) == [f"{path}.{name}" for path in paths for name in "AB"]
    assert list(tuning.fixed) == [f"{path}.{name}" for path in paths for name in ("A0", "B0")], "kept for a resumed run"
    assert tuning.count == 2 * 3 * (64 + 64 + 128 + 64)
    assert tuning.learning_rate_ratios == {f"{path}.B": 4.0 for path in paths}


def test_scales():
    def scale(**settings: Any) -> float:
        return next(iter(pissa.updates(begun(**settings)[1].adapter).values())).scale

    assert scale() == 1.0 and scale(rank=4, rslora=True) == 2.0  # auto is rank
    assert scale(rank=4, alpha=8) == 2.0 and scale(rank=16, alpha=8, rslora=True) == 2.0


def test_a_scale_changes_the_factors_and_not_their_product():
    one, other = begun(rank=4)[1], begun(rank=4, alpha=16)[1]
    for path, update in pissa.updates(one.adapter).items():
        torch.testing.assert_close(update._taken(), pissa.updates(other.adapter)[path]._taken())


def test_more_singular_vectors_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"method pissa: method.rank=33 asks for more .* than 4 of the layers have, .*k_proj.*take 32"):
        method.build(tiny("llama"), Settings(rank=33), quantized=False)


@pytest.mark.parametrize(("rank", "said"), [(8, None), (9, "--max-lora-rank 32"), (64, "--max-lora-rank 128"), (300, "512 at most: merge")])
def test_a_rank_that_servers_do_not_take_by_default_is_said_at_the_start(rank, said):
    notes = pissa.served_notes(rank)
    assert bool(notes) == bool(said)
    assert said is None or (said in notes[0] and f"LoRA of rank {2 * rank}" in notes[0])


@pytest.mark.parametrize("settings", [{}, {"rank": 4, "rslora": True}, {"rank": 4, "alpha": 2.0, "targets": ["o", "up"]}], ids=str)
def test_the_folder_is_a_lora_of_twice_the_rank(settings, tmp_path):
    model, tuning = begun(**settings)
    learned(tuning)
    method.place(model, tuning)
    layout.write(tmp_path, model, tuning, "made/up")
    config = json.loads((tmp_path / layout.CONFIG).read_text())
    first, rank = next(iter(pissa.updates(tuning.adapter).values())), Settings(**settings).rank
    assert (config["r"], config["lora_alpha"]) == (2 * rank, 2 * rank * first.scale)
    assert config["init_lora_weights"] is True and config["use_rslora"] is False and config["peft_type"] == "LORA"
    about = json.loads((tmp_path / "tunesmith.json").read_text())
    assert (about["layout"], about["pissa"]["rank"], about["pissa"]["quantised"]) == ("pissa", rank, False)

    # opened here it is PiSSA again, elsewhere a LoRA, and both are what was trained
    live = model(IDS).logits
    again = layout.fit(layout.read(tmp_path), tiny("llama"))
    for name, tensor in (tuning.parameters | tuning.fixed).items():
        torch.testing.assert_close((again.parameters | again.fixed)[name], tensor, rtol=0, atol=1e-6)
    (tmp_path / "tunesmith.json").unlink()
    plain = layout.fit(layout.read(tmp_path), tiny("llama"))
    assert {type(module).__name__ for module in plain.adapter.values()} == {"LoRA"}
    for opened in (again, plain):
        fresh = tiny("llama")
        slots.place(fresh, opened.adapter)
        torch.testing.assert_close(fresh(IDS).logits, live, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(live, tiny("llama")(IDS).logits, atol=1e-2)


def test_going_on_from_a_folder_keeps_method_and_rank(tmp_path):
    model, tuning = begun(rank=4, alpha=8, targets=["q", "v"])
    layout.write(tmp_path, model, tuning, "made/up")
    found = layout.settings(layout.read(tmp_path), tiny("llama"))
    assert {key: found[key] for key in ("name", "rank", "alpha", "targets", "rslora")} == {
        "name": "pissa", "rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "rslora": False,
    }  # fmt: skip
    Settings(**found)


def test_a_folder_whose_halves_cannot_be_is_refused(tmp_path):
    from tunesmith.methods import lora
    from tunesmith.methods.settings import LoRA

    model = tiny("llama")
    layout.write(tmp_path, model, lora.build(model, LoRA(rank=3)), "made/up")
    (tmp_path / "tunesmith.json").write_text('{"layout": "pissa", "pissa": {}}')
    with pytest.raises(UserError, match=r"tunesmith.json: says that the ranks are doubled, but .* has an odd one"):
        layout.fit(layout.read(tmp_path), model)


def test_rows_of_the_embedding_are_trained_beside():
    model, tuning = begun(rank=4, targets=["q"], trainable_tokens=[5, 7])
    assert {name for name in tuning.parameters if "embed_tokens" in name} == {"model.embed_tokens.values"}
    before = tiny("llama")(IDS).logits
    method.place(model, tuning)
    assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("kind", ["linear", "nf4"])
def test_factors_are_those_of_the_plain_lora(kind):
    """Over the base's own codes too, whatever codes it was trained over."""
    base, update = layer(kind), module(0.1)
    plain = update.as_lora()
    x = torch.randn(3, 64)
    wanted = plain(base, x)
    update.settle(base, lambda: WEIGHT.clone())
    down, up, beyond = update.factors(base)
    assert beyond is None and down.shape == (8, 64)
    assert torch.allclose(base(x) + x @ down.T @ up.T, wanted, atol=1e-4)
