"""peft as the judge of a prefix: the same table gives the same logits, gradients and answers, and each reads the other's folders.

It reads the sizes of keys from the configuration, ours come from the modules; where the two differ, or layers differ from one
another, the class's own attention behind a cache is the judge (`tests/methods/test_prefix.py`).
"""

import json
import warnings
from typing import Any

import pytest
import torch
import transformers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import PeftModel, PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_text

from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.generate import Sampling, generate
from tunesmith.methods import method
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import front, slots
from tunesmith.models.load import quiet
from tunesmith.models.proof import Proof, row_arguments
from tunesmith.step.forward import prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning"),  # makes its own
]
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi", "phi3", "gpt2", "opt", "mixtral"]
TOKENS = 5
IDS_BT = some_ids(24).view(2, 12)


class Words:
    """A tokenizer of numbers."""

    def __call__(self, text: str, **asked: Any) -> dict[str, Any]:
        ids = [int(word) for word in text.split()]
        return {"input_ids": torch.tensor([ids]) if "return_tensors" in asked else ids}


def ours(family: str | Any, name: str = "prefix", **settings: Any) -> tuple[Any, Any]:
    """A model with our prefix in place, stirred."""
    model = tiny(family) if isinstance(family, str) else family
    chosen: Any = SETTINGS[name].model_validate({"tokens": TOKENS, "init": "random", "hidden": 16, **settings})
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, Words(), 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    return model, tuning


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def loss(logits_BTV: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1), reduction="sum")


def packed(model: Any) -> torch.Tensor:
    """Our attention's logits of both documents in one row, as [2, 12, vocabulary]."""
    forward = prepare(model, Proof(True, True, ()), "sdpa")
    assert forward.decoder is not None and forward.head is not None
    arguments = row_arguments((12, 12), torch.device("cpu"), slots.first_position(model))
    return forward.head.logits(forward.decoder(input_ids=IDS_BT.view(1, -1), use_cache=False, **arguments).last_hidden_state).view(
        2, 12, -1
    )


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_our_folders_load_in_peft_and_agree(family, encoder, tmp_path):
    model, tuning = ours(family, encoder=encoder)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs: Any = PeftModel.from_pretrained(tiny(family), tmp_path)
    expected = theirs(input_ids=IDS_BT).logits
    assert relative(front.logits(model, IDS_BT), expected) < 1e-5
    assert relative(packed(model), expected) < 1e-5
    assert relative(tiny(family)(IDS_BT).logits, expected) > 1e-3, "the prefix does something"


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_agree(family, tmp_path):
    """Ours of a packed row, theirs of a batch of documents behind copies of the prefix."""
    model, tuning = ours(family, name="ptuning_v2")
    layout.write(tmp_path, model, tuning, "made/up")
    theirs: Any = PeftModel.from_pretrained(tiny(family), tmp_path)  # it refuses to go on training a loaded prefix
    theirs.prompt_encoder["default"].requires_grad_(True)
    loss(packed(model)).backward()
    loss(theirs(input_ids=IDS_BT).logits).backward()
    expected = theirs.prompt_encoder["default"].embedding.weight.grad
    found = torch.cat([module.table.grad for module in tuning.adapter.values()], dim=1)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_an_mlps_gradients_agree(family, tmp_path):
    """Our shares of the encoder are slices of theirs: the same values give the same gradients."""
    model, tuning = ours(family, encoder="mlp", hidden=64)
    layout.write(tmp_path, model, tuning, "made/up")
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, prefix_projection=True, encoder_hidden_size=64, token_dim=said["token_dim"],
        num_attention_heads=said["num_attention_heads"], num_layers=said["num_layers"],
    )  # fmt: skip
    theirs: Any = get_peft_model(tiny(family), config)
    encoder: Any = theirs.prompt_encoder["default"]
    modules = list(tuning.adapter.values())
    if encoder.embedding.weight.shape[1] != 64:  # its vectors are as wide as the keys
        encoder.embedding = torch.nn.Embedding(TOKENS, 64)
        encoder.transform[0] = torch.nn.Linear(64, 64)
    pairs = {
        "embedding": (encoder.embedding.weight, modules[0].source.embedding),
        "hidden": (encoder.transform[0].weight, modules[0].source.layer.weight),
        "hidden bias": (encoder.transform[0].bias, modules[0].source.layer.bias),
    }
    with torch.no_grad():
        for theirs_too, mine in pairs.values():
            theirs_too.copy_(mine)
        encoder.transform[2].weight.copy_(torch.cat([module.weight for module in modules]))
        encoder.transform[2].bias.copy_(torch.cat([module.bias for module in modules]))
    loss(packed(model)).backward()
    loss(theirs(input_ids=IDS_BT).logits).backward()
    for key, (theirs_too, mine) in pairs.items():
        assert theirs_too.grad is not None and relative(mine.grad, theirs_too.grad) < 2e-5, key
    assert relative(torch.cat([module.weight.grad for module in modules]), encoder.transform[2].weight.grad) < 1e-5
    assert relative(torch.cat([module.bias.grad for module in modules]), encoder.transform[2].bias.grad) < 1e-5


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral", "phi", "phi3", "gpt2"])
@torch.no_grad()
def test_folders_made_by_peft_load_here_and_agree(family, projection, tmp_path):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, prefix_projection=projection, encoder_hidden_size=24)
    theirs: Any = get_peft_model(tiny(family), config).eval()
    theirs.save_pretrained(tmp_path)
    model = tiny(family)
    tuning = layout.fit(layout.read(tmp_path), model)
    method.place(model, tuning)
    expected = theirs(input_ids=IDS_BT).logits
    assert relative(front.logits(model, IDS_BT), expected) < 1e-5 and relative(packed(model), expected) < 1e-5
    assert layout.settings(layout.read(tmp_path), model) == {"name": "prefix", "tokens": TOKENS, "encoder": "none"}
    again = PeftModel.from_pretrained(tiny(family), tmp_path)
    assert relative(again(input_ids=IDS_BT).logits, expected) < 1e-5, "it reads what it wrote"


def test_heads_that_are_not_hidden_size_over_heads(tmp_path):
    """As Qwen3-0.6B has them."""
    with quiet():
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=32,
        )  # fmt: skip
        base = transformers.Qwen3ForCausalLM(config).eval()
    model, tuning = ours(base)
    assert all((module.heads, module.size) == (2, 32) for module in tuning.adapter.values())
    layout.write(tmp_path, model, tuning, "made/up")
    with torch.no_grad():
        expected, found = front.logits(model, IDS_BT), packed(model)
        assert relative(found, expected) < 1e-5
        slots.lift(base, tuning.adapter)
        base.set_attn_implementation("sdpa")
        theirs: Any = PeftModel.from_pretrained(base, tmp_path)
        assert relative(theirs(input_ids=IDS_BT).logits, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_first_values_are_those_of_peft_for_a_text(family):
    theirs: Any = get_peft_model(tiny(family), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    expected = initialize_kv_prefix_from_text(theirs, Words(), text="5 6 7 8 9 10", use_chat_template=False)
    _, tuning = ours(family, name="ptuning_v2", init="activations", text="5 6 7 8 9 10")
    found = torch.cat([module.table for module in tuning.adapter.values()], dim=1)
    assert relative(found, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_answers_agree(family, tmp_path):
    model, tuning = ours(family)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs: Any = PeftModel.from_pretrained(tiny(family), tmp_path).eval()
    prompt = some_ids(7, seed=5)
    expected = theirs.generate(input_ids=prompt[None], attention_mask=torch.ones(1, 7, dtype=torch.long), max_new_tokens=8, do_sample=False)
    answers = generate(model, [prompt.tolist()], [2], Sampling(max_new_tokens=8))
    assert answers[0].ids == [token for token in expected[0, 7:].tolist() if token != 2]


def test_what_does_not_fit_is_refused_all_at_once(tmp_path):
    model, tuning = ours("llama")
    layout.write(tmp_path, model, tuning, "made/up")
    with pytest.raises(UserError, match=r"made for another base model \(made/up\)") as caught:
        layout.fit(layout.read(tmp_path), tiny("gpt2"))
    assert caught.value.problems[1:] == ("  2 key/value heads, the model has 4", "  32 channels of keys, the model has 64")
    with pytest.raises(UserError, match="every block must have attention"):
        layout.fit(layout.read(tmp_path), tiny("mamba"))
    said = json.loads((tmp_path / "adapter_config.json").read_text()) | {"num_virtual_tokens": 7, "num_transformer_submodules": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError) as caught:
        layout.read(tmp_path)
    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        "num_virtual_tokens=7, but the table has 5 rows",
        "num_transformer_submodules=2 is not served, only decoders are",
    ]


def test_the_method_and_its_length_are_the_folders(tmp_path):
    model, tuning = ours("llama", name="ptuning_v2")
    layout.write(tmp_path, model, tuning, "made/up")
    assert layout.settings(layout.read(tmp_path), model) == {"name": "ptuning_v2", "tokens": TOKENS, "encoder": "none"}
