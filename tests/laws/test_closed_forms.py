"""Every method trains as many numbers as its page says: the formulas of docs/methods are computed and compared.

A page gives them on lines that begin with "Trained parameters", each in a code span behind a colon, as a Python expression in the
names of `names` below. Settings in parentheses in front of the colon say when a formula holds; one without them always does.
"""

import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import tiny
from tunesmith.methods import method
from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import SETTINGS, LoRA
from tunesmith.run_yaml import flow

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
MODELS = ("llama", "llama_tied", "qwen3", "gemma3", "phi3", "gpt2")
_LINE = re.compile(r"^Trained parameters(?: \((?P<when>[^)]*)\))?: `(?P<formula>[^`]+)`", re.MULTILINE)

LOW_RANK: list[dict[str, Any]] = [{}, {"rank": 3, "rslora": True}, {"trainable_tokens": [3, 5, 7]}, {"modules_to_save": ["{norm}"]}]
IN_FRONT: list[dict[str, Any]] = [{}, {"tokens": 5, "encoder": "mlp", "hidden": 24}, {"tokens": 5, "encoder": "lstm", "hidden": 24}]
CASES: dict[str, list[dict[str, Any]]] = {
    "full": [{}],
    "freeze": [
        {},
        {"layers": 1},
        {"layers": 1, "end": "first", "embeddings": True},
        {"layers": 1, "head": True},
        {"pattern": ".*bias|.*norm.*"},
    ],
    "lora": [*LOW_RANK, {"init": "orthogonal"}],
    "dora": LOW_RANK,
    "pissa": [*LOW_RANK, {"rank": 16, "niter": "exact"}],
    "prompt": [{}, {"tokens": 3, "init": "random"}],
    "ptuning": [{}, *IN_FRONT[1:]],
    "prefix": [*IN_FRONT, {"tokens": 7, "encoder": "none"}, {"init": "random"}],
    "ptuning_v2": IN_FRONT,
    "adapter": [
        {"variant": variant} | own for variant in ("pfeiffer", "houlsby", "parallel") for own in ({}, {"width": 5}, {"reduction": 3.0})
    ],
}


def formulas(stem: str) -> list[tuple[dict[str, str], str]]:
    """(settings that it needs, formula) of each line of a page."""
    text = (PAGES / f"{stem}.md").read_text(encoding="utf-8")
    return [(dict(re.findall(r"`(\w+)=([^`]+)`", found["when"] or "")), found["formula"]) for found in _LINE.finditer(text)]


def names(model: Any, settings: Any) -> dict[str, Any]:
    """What formulas are made of, counted on the model itself and by nothing of ours."""
    config, said = model.config, settings.model_dump()
    blocks: Any = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    linears = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear | Conv1D)]
    heads = config.num_attention_heads
    known = {
        "N": model.num_parameters(),
        "C": config.hidden_size,
        "L": config.num_hidden_layers,
        "V": config.vocab_size,
        "K": getattr(config, "num_key_value_heads", heads),
        "E": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "M": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "P": said.get("tokens"),
        "r": said.get("rank"),
        "n": said.get("layers"),
        "t": len(said.get("trainable_tokens", [])),
        "targets": [tuple(reversed(m.weight.shape)) if isinstance(m, nn.Linear) else tuple(m.weight.shape) for m in linears],
        "saved": sum(p.numel() for name in said.get("modules_to_save", []) for p in final_norm(model)[name].parameters()),
    }
    known["h"] = known["H"] = width_of_encoder(settings, config.hidden_size)
    known["w"] = width_of_bottleneck(settings, config.hidden_size)
    known["chosen"] = [prod(shape) for shape in chosen(model, blocks, settings)]
    return known


def final_norm(model: Any) -> dict[str, nn.Module]:
    return {"ln_f": model.transformer.ln_f} if hasattr(model, "transformer") else {"model.norm": model.model.norm}


def width_of_encoder(settings: Any, channels: int) -> int | None:
    hidden = getattr(settings, "hidden", None)
    return channels if hidden == "auto" else hidden  # tiny models are narrower than the 512 of a prefix


def width_of_bottleneck(settings: Any, channels: int) -> int | None:
    if settings.name != "adapter":
        return None
    usual = 2 if settings.variant == "parallel" else 16
    return settings.width or int(channels / (usual if settings.reduction == "auto" else settings.reduction))


def chosen(model: Any, blocks: Any, settings: Any) -> list[Any]:
    """Shapes of the tensors that `freeze` is told to train, each tensor once."""
    if settings.name != "freeze":
        return []
    taken = blocks[-settings.layers :] if settings.end == "last" else blocks[: settings.layers]
    tensors = [p for block in taken for p in block.parameters()]
    if settings.pattern:
        tensors = [p for name, p in model.named_parameters() if re.fullmatch(settings.pattern, name)]
    if settings.embeddings:
        tensors.append(model.get_input_embeddings().weight)
    if settings.head:
        [norm] = final_norm(model).values()
        tensors += norm.parameters()
        if not model.config.tie_word_embeddings:
            tensors += model.lm_head.parameters()
    return [p.shape for p in {id(p): p for p in tensors}.values()]


def computed(stem: str, model: Any, settings: Any, family: str) -> list[int]:
    """What the formulas of a page give for these settings: one number each."""
    said = {name: flow(value) for name, value in settings.model_dump().items()} | {"model": family}
    known = names(model, settings)
    return [
        eval(formula, known | {"__builtins__": {"sum": sum}})
        for when, formula in formulas(stem)
        if all(said[key] == value for key, value in when.items())
    ]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("name", "own"), [(name, own) for name in METHODS for own in CASES[name]], ids=str)
def test_what_is_trained_is_what_the_page_says(name: str, own: dict[str, Any], family: str) -> None:
    model = tiny(family)
    if "modules_to_save" in own:
        own = own | {"modules_to_save": list(final_norm(model))}
    settings: Any = SETTINGS[name](**own)
    foreseen = computed(name, model, settings, family)
    assert foreseen and set(foreseen) == {method.build(model, settings, quantized=False).count}


@pytest.mark.parametrize("targets", [["q", "v"], ["q_proj", "mlp.down_proj"]])
@pytest.mark.parametrize("name", ["lora", "dora", "pissa"])
def test_fewer_targets_are_fewer_terms(name: str, targets: list[str]) -> None:
    """The tiny Llama: q [64, 64], v [32, 64], down [64, 128], in two blocks."""
    model, settings = tiny("llama"), SETTINGS[name].model_validate({"targets": targets})
    shapes = {"q": (64, 64), "v": (64, 32), "q_proj": (64, 64), "mlp.down_proj": (128, 64)}
    known = names(model, settings) | {"targets": 2 * [shapes[target] for target in targets]}
    [(_, formula)] = formulas(name)
    assert eval(formula, known | {"__builtins__": {"sum": sum}}) == method.build(model, settings, quantized=False).count


def test_loftq_trains_what_its_page_says() -> None:
    """A way for LoRA to begin, with a page of its own; only over NF4."""
    model, settings = tiny("llama"), LoRA(init="loftq", rank=4)
    [foreseen] = computed("loftq", model, settings, "llama")
    assert foreseen == method.build(model, settings, quantized=True).count


def test_every_page_of_a_method_has_a_formula_that_is_computed() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*METHODS, "loftq"}
    assert [stem for stem in [*METHODS, "loftq"] if not formulas(stem)] == []
