"""The head read off a model gives the class's own logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.tiny_models import CONFIGS, some_ids, tiny
from tunesmith.models.head import Head, decoder_of, head_of

DIFFERENT = ["llama", "llama_tied", "gemma2", "phi", "cohere", "granite", "gpt2", "opt", "gptj", "llama4", "mamba"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_logits_are_those_of_the_class(name):
    model = tiny(name)
    ids_1T = some_ids(12)[None]
    with torch.no_grad():
        hidden_1TC = decoder_of(model)(input_ids=ids_1T, use_cache=False).last_hidden_state
        ours = head_of(model).logits(hidden_1TC[0])
        theirs = model(input_ids=ids_1T, use_cache=False).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_a_head_is_made_of():
    assert head_of(tiny("gemma2")).softcap == 3.0 and head_of(tiny("llama")).softcap is None
    assert head_of(tiny("granite")).scale == 1 / 4 and head_of(tiny("cohere")).scale == 0.25 and head_of(tiny("llama")).scale == 1.0
    phi = tiny("phi")
    assert head_of(phi).bias_V is phi.lm_head.bias and head_of(tiny("llama")).bias_V is None
    tied = tiny("llama_tied")
    assert head_of(tied).weight_VC is tied.get_input_embeddings().weight


def test_the_formula():
    head = Head(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]), 0.5, 4.0)
    logits = head.logits(torch.tensor([[3.0, -8.0]]))
    torch.testing.assert_close(logits, torch.tensor([[4 * torch.tanh(torch.tensor(3.5 / 4)), 4 * torch.tanh(torch.tensor(-1.0))]]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoder_is_below_the_head(name):
    model = tiny(name)
    decoder = decoder_of(model)
    assert decoder is not model
    assert model.get_output_embeddings() not in list(decoder.modules())


def test_the_head_is_the_models_own_tensor_not_a_copy():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=1, vocab_size=8, hidden_size=16, num_attention_heads=2))
    assert head_of(model).weight_VC is model.lm_head.weight
