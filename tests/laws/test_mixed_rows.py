"""Law: every method x every kind of base gives, in a row whose documents go by different adapters, what it gives alone: a document by
one adapter, one by another of the same method, one by the base and one by another method, computed at once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from tests.tiny_models import some_ids, tiny
from tunesmith.methods import method
from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import front, slots
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import attend
from tunesmith.models.head import decoder_of, head_of
from tunesmith.models.nf4 import Nf4Linear, is_nf4, quantize
from tunesmith.serve.builtin.mixed import Mixed, Span

KINDS = ["llama", "gemma3", "gpt2", "mixtral"]  # untied; tied with a scaled embedding and windows; Conv1D and biases; experts
OWN = ("full", "freeze")  # models of their own
SIZES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "pissa": {"rank": 4, "niter": "exact"},
    "prompt": {"tokens": 3, "init": "vocabulary"},
    "ptuning": {"tokens": 4, "hidden": 16},
    "prefix": {"tokens": 3, "hidden": 16, "init": "random"},
    "ptuning_v2": {"tokens": 5, "init": "random"},
    "adapter": {"reduction": 4.0},
}
CASES: dict[str, dict[str, Any]] = {name: {"name": name} | SIZES.get(name, {}) for name in METHODS if name not in OWN}
CASES |= {
    "lora, rank-stabilised, of some layers": {"name": "lora", "rank": 2, "rslora": True, "targets": ["o"]},
    "lora with tokens": {"name": "lora", "rank": 2, "trainable_tokens": [5, 7, 60]},
    "dora with tokens": {"name": "dora", "rank": 2, "trainable_tokens": [8]},
    "pissa with a head": {"name": "pissa", "rank": 2, "niter": "exact", "modules_to_save": ["lm_head"]},
    "lora with an embedding": {"name": "lora", "rank": 2, "modules_to_save": ["wte", "embed_tokens"]},
    "lora with norms": {"name": "lora", "rank": 2, "modules_to_save": ["norm"]},
    "houlsby": {"name": "adapter", "variant": "houlsby", "reduction": 4.0},
    "parallel": {"name": "adapter", "variant": "parallel", "reduction": 4.0},
}
NAMES = {"llama": "norm", "gemma3": "q_norm", "gpt2": "ln_2", "mixtral": "gate"}  # of what is saved whole beside LoRA
LOFTQ = {"loftq": {"name": "lora", "rank": 4, "init": "loftq"}}
OTHER = {"lora": "dora", "dora": "lora", "pissa": "houlsby"}  # what goes beside a method; the rest goes beside LoRA
LENGTHS = (9, 40, 5, 7)  # the second goes by its own products
DOCUMENTS: dict[str, Any] = {}  # of the row that is computed: (start, end, prefix by layer)


def one_by_one(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: Any = None, **named: Any) -> tuple[Tensor, None]:
    """Every document of the row by itself, behind its own prefix."""
    assert mask is None
    parts, layer = [], module.layer_idx
    for start, end, prefix in DOCUMENTS["row"]:
        q_HTE, k_KTE, v_KTE = (each[0, :, start:end] for each in (q, k, v))
        scale = scaling if scaling is not None else q.shape[-1] ** -0.5
        fronts, window = [prefix[layer]] if prefix else [], named.get("sliding_window")
        parts.append(attend(q_HTE, k_KTE, v_KTE, Forest((0, end - start)), fronts, scale, window=window, sinks_H=named.get("s_aux")))
    return torch.cat(parts)[None], None


AttentionInterface.register("mixed_law", one_by_one)


def as_nf4(model: Any) -> None:
    for place in slots.linears(model):
        parent, _, own = place.path.rpartition(".")
        linear: Any = model.get_submodule(place.path)
        weight_OI = linear.weight.detach().T.contiguous() if place.transposed else linear.weight.detach()
        made = Nf4Linear(place.in_features, place.out_features, linear.bias is not None, True, torch.float32, place.transposed)
        made.exchange(quantize(weight_OI, True))
        if linear.bias is not None:
            made.bias = linear.bias
        setattr(model.get_submodule(parent), own, made)


def ready(kind: str, model: Any, settings: dict[str, Any], seed: int) -> Tuning:
    """An adapter that does something, made for this model and not in its places."""
    own = tiny(kind)
    given = dict(settings)
    if "norm" in given.get("modules_to_save", ()):
        given["modules_to_save"] = [NAMES[kind]]
    if "wte" in given.get("modules_to_save", ()):
        given["modules_to_save"] = ["wte" if kind == "gpt2" else "embed_tokens"]
    chosen = SETTINGS[given["name"]](**given)
    quantized = any(is_nf4(module) for module in model.modules())

    def dense(path: str) -> Tensor:
        weight: Tensor = own.get_submodule(path).weight.detach()
        return weight.T.contiguous() if kind == "gpt2" else weight

    tuning = method.build(model, chosen, quantized=quantized)
    method.begin(tuning, Start(model, None, 0, dense), chosen)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return tuning


def alone(kind: str, quantized: bool, settings: dict[str, Any] | None, seed: int, ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """(hidden states, logits) of a document by an adapter that stands in its places in the ordinary way."""
    model = tiny(kind)
    if quantized:
        as_nf4(model)
    if settings is not None:
        tuning = ready(kind, model, settings, seed)
        # over NF4 what begins from the base is served as its plain LoRA, without codes of its own
        modules: dict[str, Any] = dict(tuning.adapter)
        served = {path: module.as_lora() if hasattr(module, "as_lora") else module for path, module in modules.items()}
        slots.place(model, served)
    with torch.no_grad():
        return front.hidden(model, ids_T[None])[0], front.logits(model, ids_T[None])[0]


def mixed_row(model: Any, mixed: Mixed, documents: list[tuple[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same of all documents, computed as one row."""
    model.set_attn_implementation("mixed_law")
    ids, positions, spans, at = [], [], list[Span](), 0
    for name, ids_T in documents:
        whole = torch.cat([torch.tensor(list(mixed.virtual_ids(name)), dtype=torch.long), ids_T])
        first = mixed.first_position(name)
        ids.append(whole)
        positions.append(torch.arange(first, first + len(whole)))
        spans.append((at, at + len(whole), name))
        at += len(whole)
    DOCUMENTS["row"] = [(start, end, mixed.prefix(name)) for start, end, name in spans]
    with mixed.rows(spans):
        given: dict[str, Any] = {"input_ids": torch.cat(ids)[None], "position_ids": torch.cat(positions)[None], "use_cache": False}
        h_TC = decoder_of(model)(**given).last_hidden_state[0]
    with mixed.rows(spans):
        logits_TV = head_of(model).logits(h_TC)
    keep = [slice(end - len(ids_T), end) for (_, end, _), (_, ids_T) in zip(spans, documents, strict=True)]
    return [(h_TC[each], logits_TV[each]) for each in keep]


def check(kind: str, case: str, quantized: bool = False, lengths: tuple[int, ...] = LENGTHS) -> None:
    settings, other = (CASES | LOFTQ)[case], CASES[OTHER.get(CASES.get(case, {"name": "pissa"})["name"], "lora")]
    adapters = {"first": (settings, 1), "second": (settings, 2), "": (None, 0), "other": (other, 3)}
    model = tiny(kind)
    if quantized:
        as_nf4(model)
    mixed = Mixed(model)
    for name, (own, seed) in adapters.items():
        if own is not None:
            mixed.add(name, ready(kind, model, own, seed))
    documents = [(name, some_ids(length, at)) for at, (name, length) in enumerate(zip(adapters, lengths, strict=True))]
    wanted = [alone(kind, quantized, *adapters[name], ids_T) for name, ids_T in documents]
    found = mixed_row(model, mixed, documents)
    for (name, _), (h, logits), (wanted_h, wanted_logits) in zip(documents, found, wanted, strict=True):
        assert torch.allclose(h, wanted_h, rtol=1e-5, atol=2e-5), (name, (h - wanted_h).abs().max())
        assert torch.allclose(logits, wanted_logits, rtol=1e-5, atol=2e-5), (name, (logits - wanted_logits).abs().max())
    base = alone(kind, quantized, None, 0, documents[0][1])[1]
    assert (wanted[0][1] - base).abs().max() > 1e-2, "the adapter does something"
    for name in ("first", "second", "other"):
        mixed.remove(name)
    assert list(slots.placed(model)) == [mixed._head], "nothing but the head's place is left"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_law(kind: str, case: str) -> None:
    check(kind, case)


@pytest.mark.parametrize("case", ["lora", "dora", "pissa", "lora with tokens", "lora with norms", "pissa with a head", "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_short_stretches(kind: str, case: str) -> None:
    """As in a step that decodes: nothing goes by products of its own."""
    check(kind, case, lengths=(1, 2, 1, 3))


@pytest.mark.parametrize("case", [case for case in (CASES | LOFTQ) if METHODS[(CASES | LOFTQ)[case]["name"]].NF4 and "norms" not in case])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_over_nf4(kind: str, case: str) -> None:
    check(kind, case, quantized=True)
