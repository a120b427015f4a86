"""What is common to all methods. What each must keep is in `laws/test_methods.py`."""

import pytest
import torch

from tests.tiny_models import tiny
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS, Freeze, Full, LoRA


def test_the_shelf_and_its_settings_name_the_same_methods():
    assert list(method.METHODS) == list(SETTINGS)


@pytest.mark.parametrize("settings", [Full(), Freeze()])
def test_the_bases_own_weights_are_not_trained_over_nf4(settings):
    with pytest.raises(UserError) as caught:
        method.build(tiny("llama"), settings, quantized=True)
    assert caught.value.problems == (
        f"method {settings.name} trains the base's own weights, and NF4 codes have no gradient; "
        "take method.name=lora (QLoRA), or model.quantize=null",
    )


def test_what_a_model_lacks_is_the_users_to_mend():
    with pytest.raises(UserError, match=r"^method lora: no linear layer c_attn in this model; roles: q k v"):
        method.build(tiny("llama"), LoRA(targets=["c_attn"]), quantized=False)
    with pytest.raises(UserError, match=r"^method freeze: method.layers=9, but the model has 2 blocks"):
        method.build(tiny("llama"), Freeze(layers=9), quantized=False)


def test_place_trains_exactly_what_is_tuned():
    model = tiny("llama").requires_grad_(True)
    tuning = method.build(model, LoRA(), quantized=False)
    method.place(model, tuning)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in tuning.parameters.values())
    frozen = tiny("llama").requires_grad_(True)
    method.place(frozen, method.build(frozen, Freeze(layers=1), quantized=False))
    assert {name.split(".")[2] for name, p in frozen.named_parameters() if p.requires_grad} == {"1"}


def test_restore_copies_into_the_tensors_that_stand():
    tuning = method.build(tiny("llama"), LoRA(), quantized=False)
    wanted = {name: torch.randn(parameter.shape) for name, parameter in tuning.parameters.items()}
    addresses = [parameter.data_ptr() for parameter in tuning.parameters.values()]
    method.restore(tuning, wanted, "checkpoint")
    assert all(torch.equal(method.state(tuning)[name], value) for name, value in wanted.items())
    assert [parameter.data_ptr() for parameter in tuning.parameters.values()] == addresses


def test_misfits_are_all_listed_and_nothing_is_changed():
    tuning = method.build(tiny("llama"), LoRA(targets=["q"]), quantized=False)
    for parameter in tuning.parameters.values():
        parameter.data.zero_()
    a0, b0, a1, b1 = tuning.parameters
    given = {a0: torch.ones(3, 64), b0: torch.ones(64, 8), "other.A": torch.ones(1), b1: torch.ones(64, 8)}
    with pytest.raises(UserError) as caught:
        method.restore(tuning, given, "checkpoint of step 3")
    assert caught.value.problems == (
        "checkpoint of step 3 does not fit this model:",
        f"  {a1}: not in the file, (8, 64) is needed",
        "  other.A: in the file, but not in the model",
        f"  {a0}: (3, 64) in the file, (8, 64) in the model",
    )
    assert all(parameter.abs().max() == 0 for parameter in tuning.parameters.values())


def test_long_lists_are_cut():
    tuning = method.build(tiny("llama"), LoRA(), quantized=False)
    with pytest.raises(UserError) as caught:
        method.restore(tuning, {}, "it")
    assert len(caught.value.problems) == 22 and caught.value.problems[-1] == "  and 8 more"
