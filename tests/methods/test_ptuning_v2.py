"""The same modules as prefix tuning, without encoder unless it is asked for."""

import torch

from tests.tiny_models import some_documents, tiny
from tunesmith.data.corpus.batches import Plan
from tunesmith.methods import method, ptuning_v2
from tunesmith.methods.rates import rate_at
from tunesmith.methods.settings import Prefix, PTuningV2
from tunesmith.methods.tuning import Start
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare


def test_its_defaults_are_a_table_begun_from_activations():
    settings = PTuningV2()
    assert (settings.encoder, settings.init, settings.tokens) == ("none", "activations", 20)
    tuning = method.build(tiny("llama"), settings, quantized=True)
    assert list(tuning.parameters) == [f"model.layers.{i}.self_attn.table" for i in (0, 1)]
    assert tuning.count == 2 * 20 * 2 * 32 and tuning.about == {"method": "ptuning_v2"} and not tuning.fixed


def test_with_the_same_encoder_it_is_prefix_tuning():
    found = []
    for settings in (PTuningV2(tokens=4, encoder="mlp"), Prefix(tokens=4)):
        model = tiny("qwen3")
        tuning = method.build(model, settings, quantized=False)
        method.begin(tuning, Start(model, None, 7, lambda path: torch.empty(0)), settings)
        found.append(method.state(tuning))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_a_few_steps_at_its_rate_lower_the_loss():
    model = tiny("llama")
    tuning = method.build(model, PTuningV2(tokens=8), quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: torch.empty(0)), PTuningV2(tokens=8))
    method.place(model, tuning)
    forward, rows = prepare(model, Proof(True, True, ()), "sdpa"), Plan(some_documents([9, 14, 6]), 200, 64, 0).rows(0)
    optimizer = torch.optim.Adam(list(tuning.parameters.values()), lr=rate_at(ptuning_v2.LEARNING_RATES, 64))
    before = forward.mean_loss(rows)[0]
    for _ in range(15):
        optimizer.zero_grad()
        torch.stack([forward.loss(row, 0.1) for row in rows]).sum().backward()
        optimizer.step()
    assert forward.mean_loss(rows)[0] < 0.8 * before
