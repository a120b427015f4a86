"""peft as the judge of virtual tokens: the same table or encoder gives the same logits, gradients and answers, and each reads the
other's folders."""

import json
import warnings
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its optional parts warn about on import is none of our business
    from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig, get_peft_model

from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.generate import Sampling, generate
from tunesmith.methods import method, ptuning
from tunesmith.methods.layouts import layout
from tunesmith.methods.settings import SETTINGS
from tunesmith.methods.tuning import Start
from tunesmith.models import front, slots

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft asks for it
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning"),  # makes its own
]
FAMILIES = ["llama", "qwen3", "gemma3", "mistral", "phi", "phi3", "gpt2", "opt"]
ENCODERS = ["mlp", "lstm"]
TOKENS = 5
IDS_BT = some_ids(24).view(2, 12)


def ours(family: str, name: str = "prompt", **settings: Any) -> tuple[Any, Any]:
    """A model with our virtual tokens in place, all values random."""
    model = tiny(family)
    chosen: Any = SETTINGS[name].model_validate({"tokens": TOKENS, **settings})
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    method.place(model, tuning)
    return model, tuning


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def loss(logits_BTV: torch.Tensor) -> torch.Tensor:
    """Of every token but the first, which stands behind virtual tokens and could be predicted too."""
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].reshape(-1, VOCABULARY), IDS_BT[:, 1:].reshape(-1), reduction="sum")


def theirs_of(peft_model: Any) -> torch.Tensor:
    """Logits of the real tokens."""
    logits: torch.Tensor = peft_model(input_ids=IDS_BT).logits[:, TOKENS:]
    return logits


def width(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def with_encoder(family: str, encoder: str) -> tuple[Any, Any, Any]:
    """(our model, its tuning, peft's model) with one encoder's values."""
    model, tuning = ours(family, "ptuning", encoder=encoder, hidden=24)
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, encoder_hidden_size=24, encoder_reparameterization_type=encoder.upper()
    )
    theirs = get_peft_model(tiny(family), config)
    with torch.no_grad():
        for name, parameter in theirs.prompt_encoder["default"].named_parameters():
            parameter.copy_(tuning.parameters[our_name(tuning, name)])
    return model, tuning, theirs


def our_name(tuning: Any, theirs: str) -> str:
    [path] = tuning.adapter
    return f"{path}.encoder." + theirs.replace("embedding.weight", "embedding").replace("mlp_head", "mlp").replace("lstm_head", "lstm")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_of_ours_in_peft(family, tmp_path):
    model, tuning = ours(family)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    with torch.no_grad():
        expected = theirs_of(theirs)
        assert relative(front.logits(model, IDS_BT), expected) < 1e-5
        assert relative(tiny(family)(IDS_BT).logits, expected) > 1e-3, "virtual tokens do something"


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_table_agree(family):
    model, tuning = ours(family)
    [table] = tuning.parameters.values()
    theirs = get_peft_model(tiny(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, token_dim=width(model)))
    encoder: Any = theirs.prompt_encoder["default"]
    reference = encoder.embedding.weight
    with torch.no_grad():
        reference.copy_(table)
    loss(front.logits(model, IDS_BT)).backward()
    loss(theirs_of(theirs)).backward()
    assert relative(table.grad, reference.grad) < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_gives_their_logits_and_gradients(family, encoder):
    model, tuning, theirs = with_encoder(family, encoder)
    expected = theirs_of(theirs)
    found = front.logits(model, IDS_BT)
    assert relative(found, expected) < 1e-5
    loss(found).backward()
    loss(expected).backward()
    reference = dict(theirs.prompt_encoder["default"].named_parameters())
    assert len(reference) == len(tuning.parameters)
    for name, parameter in reference.items():
        # an LSTM's gradients are sums of few, small numbers: relative to the largest of its kind
        assert relative(tuning.parameters[our_name(tuning, name)].grad, parameter.grad) < 3e-5, name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_flattened_table_of_an_encoder_in_peft(encoder, tmp_path):
    model, tuning, reference = with_encoder("qwen3", encoder)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny("qwen3"), tmp_path)
    with torch.no_grad():
        expected = theirs_of(theirs)
        assert relative(front.logits(model, IDS_BT), expected) < 1e-5
        assert relative(theirs_of(reference), expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_their_table_loads_here(family, tmp_path):
    theirs = get_peft_model(
        tiny(family), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, token_dim=width(tiny(family)))
    )
    theirs.save_pretrained(tmp_path)
    model = tiny(family)
    file = layout.read(tmp_path)
    assert layout.settings(file, model) == {"name": "prompt", "tokens": TOKENS}
    slots.place(model, layout.fit(file, model).adapter)
    with torch.no_grad():
        assert relative(front.logits(model, IDS_BT), theirs_of(theirs)) < 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_is_left_of_their_encoder_loads_here(encoder, tmp_path):
    """They keep the flattened table only, as we do: a run that goes on from it trains a plain one."""
    config = PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, encoder_hidden_size=24, encoder_reparameterization_type=encoder.upper()
    )
    theirs = get_peft_model(tiny("llama"), config)
    theirs.save_pretrained(tmp_path)
    model = tiny("llama")
    file = layout.read(tmp_path)
    assert layout.settings(file, model) == {"name": "prompt", "tokens": TOKENS}
    slots.place(model, layout.fit(file, model).adapter)
    with torch.no_grad():
        assert relative(front.logits(model, IDS_BT), theirs_of(theirs)) < 1e-5


def test_a_narrow_embedding_takes_narrow_virtual_tokens(tmp_path):
    """OPT-350m projects its embeddings up to the width of its blocks."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=64, word_embed_proj_dim=32, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, dropout=0.0, pad_token_id=0, init_std=0.3,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval().requires_grad_(False)
    chosen = SETTINGS["prompt"].model_validate({"tokens": TOKENS})
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), chosen)
    assert [tuple(table.shape) for table in tuning.parameters.values()] == [(TOKENS, 32)]
    layout.write(tmp_path, model, tuning, "made/up")
    with torch.no_grad():
        expected = theirs_of(PeftModel.from_pretrained(model, tmp_path))
        slots.place(model, tuning.adapter)
        assert relative(front.logits(model, IDS_BT), expected) < 1e-5


PROMPTS = [some_ids(length, seed=length).tolist() for length in (3, 11, 7, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_theirs_alone_and_in_a_batch(family, tmp_path):
    model, tuning = ours(family)
    layout.write(tmp_path, model, tuning, "made/up")
    theirs = PeftModel.from_pretrained(tiny(family), tmp_path)
    expected = [
        theirs.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]  # fmt: skip
    for batch_size in (1, 4):
        found = generate(model, PROMPTS, frozenset(), Sampling(max_new_tokens=9), batch_size=batch_size)
        assert [answer.ids for answer in found] == expected, batch_size


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
def test_the_file_says_what_peft_itself_would_say(name, tmp_path):
    """Every key of ours is one of theirs, and they make the same of it."""
    model, tuning = ours("llama", name)
    layout.write(tmp_path, model, tuning, "made/up")
    written = json.loads((tmp_path / layout.CONFIG).read_text())
    theirs: Any = {"prompt": PromptTuningConfig, "ptuning": PromptEncoderConfig}[name]
    read_by_them = theirs.from_pretrained(str(tmp_path)).to_dict()
    assert {key: read_by_them[key] for key in written} == written
    assert (written["num_virtual_tokens"], written["token_dim"], written["num_layers"], written["num_attention_heads"]) == (
        TOKENS,
        64,
        2,
        4,
    )


def test_trained_encoders_are_what_they_count(tmp_path):
    """The closed form of the page, against their modules."""
    for encoder in ENCODERS:
        _, tuning, theirs = with_encoder("llama", encoder)
        assert tuning.count == sum(parameter.numel() for parameter in theirs.prompt_encoder.parameters())
    assert ptuning.NF4
