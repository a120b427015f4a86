from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import some_documents, tiny
from tunesmith.errors import UserError
from tunesmith.export import distil
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS, LoRA
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.load import Base
from tunesmith.models.proof import Proof

TEACHERS: dict[str, dict[str, Any]] = {
    "prompt": {"tokens": 3, "init": "random"},
    "prefix": {"tokens": 3, "encoder": "none", "init": "random"},
    "adapter": {"reduction": 4.0},
}


def based(family: str = "llama") -> Base:
    model = tiny(family)
    return Base(model, None, Path("unused"), torch.float32, False, "sdpa")


def moved(base: Base, name: str, settings: dict[str, Any], size: float = 0.3) -> Tuning:
    """An adapter that does something, not in its places."""
    chosen: Any = SETTINGS[name](**settings)
    tuning = method.build(base.model, chosen, quantized=False)
    method.begin(tuning, Start(base.model, None, 0, lambda path: base.model.get_submodule(path).weight.float()), chosen)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return tuning


def student(base: Base, seed: int = 0) -> Tuning:
    settings = LoRA(rank=4)
    tuning = method.build(base.model, settings, quantized=False)
    method.begin(tuning, Start(base.model, None, seed, lambda path: base.model.get_submodule(path).weight), settings)
    return tuning


def plain_kl(base: Base, teacher: Tuning, learning: Tuning, ids: list[int], at: list[int]) -> float:
    """By the class's own forward: KL(teacher, student) summed over positions."""
    from tunesmith.models import front

    found = []
    base.model.set_attn_implementation("sdpa")
    for tuning in (teacher, learning):
        with distil.placed(base.model, tuning), torch.no_grad():
            found.append(front.logits(base.model, torch.tensor([ids]))[0][at].double().log_softmax(-1))
    return (found[0].exp() * (found[0] - found[1])).sum().item()


@pytest.mark.parametrize("name", TEACHERS)
def test_a_lora_learns_to_answer_as_the_adapter(name: str) -> None:
    base, documents = based(), some_documents([20, 31, 9, 17, 25, 12, 40, 8, 15, 22] * 4)
    teacher, learning = moved(base, name, TEACHERS[name]), student(base)
    state = {key: value.clone() for key, value in base.model.state_dict().items()}
    done = distil.distil(base, teacher, learning, documents, rate=0.01, steps=16, tokens_per_step=250, row_tokens=128)
    assert done.before > 0.02 and done.after < 0.8 * done.before
    assert (done.steps, done.documents, done.held_out_documents) == (16, 36, 4) and 0 < done.best_step <= 16
    assert not slots.placed(base.model) and base.model.config._attn_implementation == "sdpa"
    assert all(torch.equal(value, state[key]) for key, value in base.model.state_dict().items()), "the base is what it was"
    assert not any(parameter.requires_grad for parameter in learning.parameters.values())


def test_the_figures_are_those_of_the_class_itself() -> None:
    base, documents = based(), some_documents([20, 31, 9, 17])
    teacher, learning = moved(base, "prefix", TEACHERS["prefix"]), student(base)
    done = distil.distil(base, teacher, learning, documents, rate=0.0, steps=0)
    _, held = distil._split(documents, 0)
    ids = held.ids_N[held.begin_D[0] : held.end_D[0]].tolist()
    at = [i - 1 for i, learned in enumerate(held.learned_N[held.begin_D[0] : held.end_D[0]]) if learned]
    assert done.before == done.after == pytest.approx(plain_kl(base, teacher, learning, ids, at) / len(at), rel=1e-4)


def test_the_same_seed_gives_the_same_lora() -> None:
    def learned(seed: int) -> dict[str, Tensor]:
        base = based()
        teacher, learning = moved(base, "prompt", TEACHERS["prompt"]), student(base, seed)
        distil.distil(base, teacher, learning, some_documents([20, 31, 9, 17, 25]), rate=0.02, steps=4, tokens_per_step=40, seed=seed)
        return {name: parameter.detach().clone() for name, parameter in learning.parameters.items()}

    first, second, other = learned(0), learned(0), learned(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("name", ["prompt", "prefix", "adapter"])
def test_where_the_class_s_own_attention_and_head_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures document by document, from a cache that holds the prefix."""
    documents = some_documents([20, 31, 9, 17])

    def asked() -> float:
        base = based()
        teacher, learning = moved(base, name, TEACHERS[name]), student(base)
        return distil.distil(base, teacher, learning, documents, rate=0.01, steps=3, tokens_per_step=60).after

    ours = asked()
    monkeypatch.setattr(distil.proof, "prove", lambda *_, **__: Proof(False, False, ("no",)))
    assert asked() == pytest.approx(ours, rel=2e-3)


def test_a_chunk_at_a_time_is_all_at_once_gradient_included() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, target_NC = torch.randn(50, 8, generator=generator), torch.randn(37, 8, generator=generator)
    results = []
    for rows in (16, 100):
        h_NC = torch.randn(37, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        total = distil.divergence(h_NC, target_NC, lambda h: h @ weight.T, lambda h: h @ weight.T, rows, scale=0.5)
        results.append((total, h_NC.grad))
    own = torch.randn(37, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    p, q = (target_NC @ weight.T).log_softmax(-1), (own @ weight.T).log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum()
    (0.5 * wanted).backward()
    for total, gradient in results:
        torch.testing.assert_close(total, wanted.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, own.grad, rtol=1e-4, atol=1e-5)


def test_documents_that_teach_nothing_are_refused() -> None:
    documents = some_documents([5, 6])
    documents.learned_D[:] = 0
    with pytest.raises(UserError, match="there is no row to fit a LoRA on"):
        distil._split(documents, 0)


def test_how_far_it_is_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil, "EVERY", 0.0)
    base, said = based(), list[str]()
    distil.distil(
        base, moved(base, "prompt", TEACHERS["prompt"]), student(base), some_documents([9, 8, 7]), rate=0.01, steps=2, tell=said.append
    )
    assert len(said) == 2 and said[0].startswith("distilled 1 of 2 steps, KL ") and said[0].endswith(" s left")
