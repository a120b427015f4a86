"""peft as the judge of PiSSA and LoftQ: the same factors, the same logits and gradients step for step, folders that mean the same."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils import loftq_utils

from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.methods import method, pissa
from tunesmith.methods.layouts import layout
from tunesmith.methods.parts.decompose import loftq
from tunesmith.methods.settings import PiSSA as Settings
from tunesmith.methods.tuning import Start
from tunesmith.models import nf4, slots
from tunesmith.models.nf4 import weight_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
]
FAMILIES = ["llama", "qwen3", "gemma3", "mistral", "phi", "phi3", "gpt2"]
IDS_BT = some_ids(24).view(2, 12)
RANK, ALPHA = 4, 6.0


def ours(name: str, niter: Any = "exact") -> tuple[Any, Any]:
    model, settings = tiny(name), Settings(rank=RANK, alpha=ALPHA, niter=niter)
    tuning = method.build(model, settings, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: weight_of(model.get_submodule(path)).clone()), settings)
    method.place(model, tuning)
    return model, tuning


def theirs(name: str, init: Any = "pissa") -> Any:
    alpha: Any = ALPHA
    settings = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=alpha, target_modules="all-linear", init_lora_weights=init)
    return get_peft_model(tiny(name), settings).eval()


def factors(model: Any) -> dict[str, Tensor]:
    """Their A and B under our names."""
    found = {}
    for key, parameter in model.named_parameters():
        if ".lora_" in key:
            path, _, letter = key.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".lora_")
            found[f"{path}.{letter}"] = parameter
    return found


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def loss(logits_BTV: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_start_and_the_same_steps(name):
    """Singular vectors are unique but for their signs, and AdamW is the same for a vector and its mirror image."""
    model, tuning = ours(name)
    judge = theirs(name)
    reference = factors(judge)
    assert reference.keys() == tuning.parameters.keys()
    signs: dict[str, Tensor] = {}
    for path, update in pissa.updates(tuning.adapter).items():
        a, b = reference[f"{path}.A"], reference[f"{path}.B"]
        assert relative(update.B @ update.A, b @ a) < 1e-4
        signs[f"{path}.A"] = (update.A * a).sum(1, keepdim=True).sign()
        signs[f"{path}.B"] = (update.B * b).sum(0, keepdim=True).sign()
    with torch.no_grad():
        base = tiny(name)(IDS_BT).logits
        assert torch.equal(model(IDS_BT).logits, base) and relative(judge(IDS_BT).logits, base) < 1e-4

    steppers = [torch.optim.AdamW(tuning.parameters.values(), lr=1e-3), torch.optim.AdamW(reference.values(), lr=1e-3)]
    for step in range(3):
        for stepper in steppers:
            stepper.zero_grad()
        for each in (model, judge):
            loss(each(IDS_BT).logits).backward()
        for key, parameter in tuning.parameters.items() if step == 0 else ():
            gradient, expected = parameter.grad, reference[key].grad
            assert gradient is not None and expected is not None and relative(gradient, signs[key] * expected) < 1e-3, key
        for stepper in steppers:
            stepper.step()
    with torch.no_grad():
        after = judge(IDS_BT).logits
        assert relative(model(IDS_BT).logits, after) < 1e-3 and relative(base, after) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_randomised_factors_are_no_worse_than_theirs(name):
    torch.manual_seed(0)
    _, tuning = ours(name, niter=4)
    reference = factors(theirs(name, "pissa_niter_4"))
    model, scale = tiny(name), ALPHA / RANK
    for path, update in pissa.updates(tuning.adapter).items():
        weight = weight_of(model.get_submodule(path))
        left = (weight - scale * update.B @ update.A).norm()
        assert left <= (weight - scale * reference[f"{path}.B"] @ reference[f"{path}.A"]).norm() * (1 + 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_our_folders_load_in_peft_over_the_original_base(name, tmp_path):
    model, tuning = ours(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    layout.write(tmp_path, model, tuning, "made/up")
    judge = PeftModel.from_pretrained(tiny(name), tmp_path)
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, judge(IDS_BT).logits) < 1e-5
        assert relative(tiny(name)(IDS_BT).logits, judge(IDS_BT).logits) > 1e-3, "the adapter does something"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_peft_converts_loads_here_and_is_the_same_update(name, tmp_path):
    judge = theirs(name)
    judge.peft_config["default"].init_lora_weights = True  # as its manual asks, so that the first values are saved as they are
    judge.save_pretrained(tmp_path / "first")
    judge.peft_config["default"].init_lora_weights = "pissa"
    first = {key: value.detach().clone() for key, value in factors(judge).items()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in factors(judge).values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    judge.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first"))

    model = tiny(name)
    opened = layout.fit(layout.read(tmp_path / "converted"), model)
    slots.place(model, opened.adapter)
    with torch.no_grad():
        assert relative(model(IDS_BT).logits, judge(IDS_BT).logits) < 1e-4
    for path, found in opened.adapter.items():
        inner, out = found.A.shape[1], found.B.shape[0]  # type: ignore[union-attr, index]
        module = pissa.PiSSA(inner, out, RANK, ALPHA / RANK)  # type: ignore[arg-type]
        module.start_from(first[f"{path}.B"], first[f"{path}.A"])
        with torch.no_grad():
            module.A.copy_(factors(judge)[f"{path}.A"])
            module.B.copy_(factors(judge)[f"{path}.B"])
            plain = module.as_lora()
            assert plain.A.shape == found.A.shape and plain.scale == found.scale
            torch.testing.assert_close(plain.B @ plain.A, found.B @ found.A, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def their_loftq() -> Any:
    """Their function, which names an accelerator in its text, made to run on this CPU."""
    space = dict(vars(loftq_utils))
    exec(inspect.getsource(loftq_utils.loftq_init).replace('"cuda"', '"cpu"'), space)
    return space["loftq_init"]


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_loftq_finds_the_same_factors(shape, iterations):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rounded, a, b = their_loftq()(weight, num_bits=4, reduced_rank=8, num_iter=iterations)
    ours_b, ours_a = loftq(weight, 8, lambda matrix: nf4.rounded(matrix, False, torch.float32), iterations, 0)
    assert relative(ours_b @ ours_a, b @ a) < 1e-3
    ours_left = weight - nf4.rounded(weight - ours_b @ ours_a, False, torch.float32) - ours_b @ ours_a
    assert ours_left.norm() < (weight - rounded - b @ a).norm() * 1.02, "one more rounding is as near, even for pure noise"
