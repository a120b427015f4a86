"""peft as the judge of DoRA and of what is trained beside updates: equal logits, equal gradients, each reads the other's folders."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import LoraConfig, PeftModel, get_peft_model

from tests.conftest import write_byte_tokenizer
from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.layouts import lora as layouts_lora
from tunesmith.methods.settings import DoRA, LoRA
from tunesmith.methods.tuning import Start
from tunesmith.models import load as loading
from tunesmith.models import nf4, slots

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of peft, on tied models and on settings that it changes
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
FAMILIES = ["llama", "qwen3", "gemma3", "mistral", "phi", "phi3", "gpt2"]
IDS_BT = some_ids(24).view(2, 12)
TOKENS = [int(each) for each in IDS_BT[0, [3, 1, 7]]] + [95]
BESIDES: dict[str, dict[str, Any]] = {
    "dora": {"method": DoRA},
    "dora, odd": {"method": DoRA, "rank": 3, "alpha": 5.0, "rslora": True},
    "rows": {"method": DoRA, "trainable_tokens": TOKENS},
    "head": {"method": LoRA, "modules_to_save": ["lm_head"]},
    "embedding and rows": {"method": LoRA, "modules_to_save": ["self_attn"], "targets": ["up"], "trainable_tokens": TOKENS},
}
CASES = [(name, kind) for name in FAMILIES for kind in ("dora", "rows")]
CASES += [("llama", "dora, odd"), ("llama", "head"), ("llama", "embedding and rows")]
CASES += [("llama_tied", kind) for kind in ("rows", "head", "embedding and rows")] + [("phi", "head")]


def ours(name: str, method: type, **chosen: Any) -> tuple[Any, Any]:
    """A model with our adapter in place, everything that is trained moved away from its start."""
    model, settings = tiny(name), method(**chosen)
    tuning = build(model, settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    place(model, tuning)
    return model, tuning


def build(model: Any, settings: Any) -> Any:
    tuning = method.build(model, settings, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    return tuning


place = method.place


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def loss(logits_BTV: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1), reduction="sum")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_logits_and_gradients_are_theirs(name: str, kind: str, tmp_path: Path) -> None:
    model, tuning = ours(name, **BESIDES[kind])
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny(name), tmp_path, is_trainable=True)
    mine, reference = model(IDS_BT).logits, theirs(IDS_BT).logits
    assert relative(mine, reference) < 1e-5
    assert relative(tiny(name)(IDS_BT).logits, reference) > 1e-3, "the adapter does something"
    loss(mine).backward()
    loss(reference).backward()
    parameters = {key.replace(".modules_to_save.default.", ".").replace(".default", ""): p for key, p in theirs.named_parameters()}
    _, written = layouts_lora.write(model, tuning, "")
    found = {id(tensor): key for key, tensor in written.items()}
    for key, parameter in tuning.parameters.items():
        expected = parameters[found[id(parameter)]].grad
        assert parameter.grad is not None and expected is not None and relative(parameter.grad, expected) < 1e-5, key


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_our_folders_come_back_as_they_were(name: str, kind: str, tmp_path: Path) -> None:
    model, tuning = ours(name, **BESIDES[kind])
    expected = model(IDS_BT).logits
    layout.write(tmp_path, model, tuning, "made/up")
    again = tiny(name)
    back = layout.fit(layout.read(tmp_path), again)
    assert list(back.parameters) == list(tuning.parameters) and list(back.adapter) == list(tuning.adapter)
    assert all(torch.equal(back.parameters[key], parameter) for key, parameter in tuning.parameters.items())
    slots.place(again, back.adapter)
    assert torch.equal(again(IDS_BT).logits, expected)
    fixed = layout.settings(layout.read(tmp_path), tiny(name))
    assert fixed["name"] == ("dora" if BESIDES[kind]["method"] is DoRA else "lora")
    settings = BESIDES[kind]["method"](**fixed)
    assert list(method.build(tiny(name), settings, quantized=False).parameters) == list(tuning.parameters)


MADE_BY_PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("llama", {"use_dora": True, "target_modules": "all-linear"}),
    "dora, patterns": (
        "llama",
        {"use_dora": True, "target_modules": ["q_proj"], "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2}, "lora_dropout": 0.1},
    ),
    "dora at the head": ("phi", {"use_dora": True, "target_modules": ["q_proj", "lm_head"]}),
    "rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS}),
    "rows, tied": ("llama_tied", {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS}),
    "rows, gemma": ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": TOKENS}),
    "rows of both ends": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [5, 8]}},
    ),
    "the same rows of both ends, tied": (
        "llama_tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": TOKENS}},
    ),
    "other rows at the other end, tied": (
        "llama_tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": TOKENS, "lm_head": [5, 8]}},
    ),
    "rows of the head": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5, 8]}}),
    "head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "head with a bias": ("phi", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "final_layernorm"]}),
    "embedding, untied there": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "head, untied there": ("llama_tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding, tied": (
        "llama_tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "a whole block's attention": ("llama", {"target_modules": ["up_proj"], "modules_to_save": ["layers.1.self_attn"]}),
}


@pytest.mark.parametrize("kind", MADE_BY_PEFT)
def test_folders_made_by_peft_load_here_and_agree(kind: str, tmp_path: Path) -> None:
    name, settings = MADE_BY_PEFT[kind]
    theirs = get_peft_model(tiny(name), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    torch.manual_seed(1)
    for key, parameter in theirs.named_parameters():
        if parameter.requires_grad or "lora_" in key:
            parameter.data += torch.randn(parameter.shape) * 0.1
    theirs.save_pretrained(str(tmp_path))
    model = tiny(name)
    tuning = layout.fit(layout.read(tmp_path), model)
    slots.place(model, tuning.adapter)
    with torch.no_grad():
        before, reference = tiny(name)(IDS_BT).logits, theirs(IDS_BT).logits
        assert relative(model(IDS_BT).logits, reference) < 1e-5
        assert relative(before, reference) > 1e-4
        layout.write(tmp_path / "ours", model, tuning, "made/up")
        back = PeftModel.from_pretrained(tiny(name), tmp_path / "ours")
        assert relative(back(IDS_BT).logits, reference) < 1e-5
        slots.lift(model, tuning.adapter)
        assert torch.equal(model(IDS_BT).logits, before)


def test_dropout_is_theirs() -> None:
    """With the same numbers drawn: each layer draws once for its input, in the same order."""
    model, settings = tiny("llama"), DoRA(dropout=0.3, targets=["q"])
    tuning = build(model, settings)
    theirs = get_peft_model(tiny("llama"), LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules=["q_proj"], lora_dropout=0.3))
    torch.manual_seed(0)
    with torch.no_grad():
        for path, module in tuning.adapter.items():
            layer: Any = theirs.get_submodule(f"base_model.model.{path}")
            for name, parameter in module.named_parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
                holder = {"A": layer.lora_A, "B": layer.lora_B, "magnitude": layer.lora_magnitude_vector}[name]
                holder["default"].weight.copy_(parameter)
    method.place(model, tuning)
    tuning.train()
    theirs.train()
    torch.manual_seed(5)
    mine = model(IDS_BT).logits
    torch.manual_seed(5)
    reference = theirs(IDS_BT).logits
    assert relative(mine, reference) < 1e-5
    tuning.train(False)
    assert relative(model(IDS_BT).logits, reference) > 1e-3


def test_over_nf4_it_is_theirs_over_the_dequantised_weights(tmp_path: Path) -> None:
    """QDoRA: the same codes as bitsandbytes, so the reference is peft over a dense model of what they stand for."""
    tiny("llama").save_pretrained(tmp_path / "base")
    write_byte_tokenizer(tmp_path / "base")
    model = loading.load(tmp_path / "base", dtype=torch.float32, quantize=True).model
    dense = tiny("llama")
    with torch.no_grad():
        for place in slots.linears(dense):
            dense.get_submodule(place.path).weight.copy_(nf4.weight_of(model.get_submodule(place.path)))
    settings = DoRA()
    tuning = method.build(model, settings, quantized=True)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), settings)
    torch.manual_seed(0)
    with torch.no_grad():
        before = model(IDS_BT).logits
        slots.place(model, tuning.adapter)
        torch.testing.assert_close(model(IDS_BT).logits, before, rtol=1e-5, atol=1e-5)
        slots.lift(model, tuning.adapter)
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    method.place(model, tuning)
    layout.write(tmp_path / "adapter", model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(dense, tmp_path / "adapter", is_trainable=True)
    mine, reference = model(IDS_BT).logits, theirs(IDS_BT).logits
    assert relative(mine, reference) < 1e-5
    loss(mine).backward()
    loss(reference).backward()
    parameters = {key.replace(".default", ""): p.grad for key, p in theirs.named_parameters()}
    names = {"A": "lora_A", "B": "lora_B", "magnitude": "lora_magnitude_vector"}
    for key, parameter in tuning.parameters.items():
        path, _, name = key.rpartition(".")
        expected = parameters[f"base_model.model.{path}.{names[name]}.weight"]
        assert parameter.grad is not None and expected is not None and relative(parameter.grad, expected) < 1e-5, key


def test_dora_of_an_embedding_is_refused_by_its_tensors(tmp_path: Path) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=["q_proj", "embed_tokens"])
    get_peft_model(tiny("llama"), config).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match=r"model\.embed_tokens\.lora_embedding_A .* is not part of a DoRA"):
        layout.read(tmp_path)


def test_the_file_says_what_peft_itself_would_say(tmp_path: Path) -> None:
    model, tuning = ours("llama_tied", DoRA, trainable_tokens=TOKENS)
    layout.write(tmp_path, model, tuning, "made/up")
    written = json.loads((tmp_path / layout.CONFIG).read_text())
    assert set(written) <= set(LoraConfig().to_dict())
    assert written["use_dora"] is True and written["trainable_token_indices"] == TOKENS and written["modules_to_save"] is None
