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


@pytest.mark.parametrize(
    ("name", "given", "idle"),
    [
        ("freeze", {"pattern": ".*norm.*", "layers": 3, "end": "first", "embeddings": True}, {"layers", "end"}),
        ("freeze", {"layers": 3, "end": "first"}, set()),
        ("lora", {"loftq_iterations": 5}, {"loftq_iterations"}),
        ("lora", {"init": "loftq", "loftq_iterations": 5}, set()),
        ("prompt", {"init": "vocabulary", "text": "Sort."}, {"text"}),
        ("prompt", {"init": "text", "text": "Sort."}, set()),
        ("prefix", {"init": "random", "text": "Sort.", "encoder": "none", "hidden": 64}, {"text", "hidden"}),
        ("prefix", {"text": "Sort.", "hidden": 64}, set()),
        ("ptuning_v2", {"hidden": 64}, {"hidden"}),
        ("ptuning_v2", {"hidden": 64, "encoder": "lstm"}, set()),
        ("adapter", {"width": 8, "reduction": 4.0}, {"reduction"}),
        ("adapter", {"reduction": 4.0}, set()),
    ],
)
def test_settings_that_would_change_nothing_are_known(name, given, idle):
    found = SETTINGS[name](**given).idle()
    assert set(found) == idle and all(because.startswith("method.") for because in found.values())


def test_the_defaults_of_every_method_all_count():
    assert [name for name, cls in SETTINGS.items() if cls().idle()] == []


def test_values_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        LoRA().rank = 4
    assert LoRA(targets=["q", "v"]).targets == ["q", "v"] and LoRA(targets=["q_proj", "mlp.fc1"]).targets == ["q_proj", "mlp.fc1"]
    assert LoRA(alpha=16).alpha == 16
