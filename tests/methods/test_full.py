"""Full tuning trains every tensor once."""

import pytest
import torch

from tests.tiny_models import CONFIGS, tiny
from tunesmith.methods import full
from tunesmith.methods.settings import Full
from tunesmith.methods.tuning import Start


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_once(name):
    model = tiny(name)
    tuning = full.build(model, Full())
    assert not tuning.adapter and list(tuning.parameters) == [key for key, _ in model.named_parameters()]
    assert {id(p) for p in tuning.parameters.values()} == {id(p) for p in model.parameters()}
    assert tuning.count == model.num_parameters()


def test_a_tied_head_is_the_embedding():
    model = tiny("llama_tied")
    tuning = full.build(model, Full())
    assert "lm_head.weight" not in tuning.parameters
    assert tuning.parameters["model.embed_tokens.weight"] is model.lm_head.weight


def test_the_start_is_the_bases_own():
    model, untouched = tiny("llama"), tiny("llama")
    full.init(full.build(model, Full()), Start(model, None, 3, lambda path: torch.empty(0)), Full())
    for ours, theirs in zip(model.parameters(), untouched.parameters(), strict=True):
        assert ours.equal(theirs)
