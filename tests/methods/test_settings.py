"""Settings of methods: names, limits, and a sentence for each."""

import pytest
from pydantic import ValidationError

from tunesmith.methods.settings import SETTINGS, Freeze, Full, LoRA


@pytest.mark.parametrize("name", SETTINGS)
def test_every_class_stands_under_its_name_with_a_sentence_for_each_field(name):
    cls = SETTINGS[name]
    assert cls.model_fields["name"].default == name and (cls.__doc__ or "").endswith(".")
    assert all((field.description or "").endswith(".") for field in cls.model_fields.values())


def test_defaults():
    assert Full() == Full(name="full") and Freeze().layers == 2
    lora = LoRA()
    assert (lora.rank, lora.alpha, lora.targets, lora.dropout, lora.rslora, lora.plus_ratio) == (8, "auto", "all", 0.0, False, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0}, {"rank": 1.5}, {"rank": True}, {"rank": "8"}, {"alpha": 0}, {"alpha": "automatic"}, {"dropout": 1}, {"dropout": -0.1},
        {"targets": "q"}, {"targets": []}, {"targets": [3]}, {"plus_ratio": 0}, {"alpha": float("inf")}, {"rnk": 3}, {"layers": 2},
    ],
)  # fmt: skip
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        LoRA(**wrong)


def test_values_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        LoRA().rank = 4
    assert LoRA(targets=["q", "v"]).targets == ["q", "v"] and LoRA(targets=["q_proj", "mlp.fc1"]).targets == ["q_proj", "mlp.fc1"]
    assert LoRA(alpha=16).alpha == 16
