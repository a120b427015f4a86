import pytest

from tunesmith.imports import updates
from tunesmith.imports.translation import Translation

CARRIED = {"dropout": "method.dropout", "rank": "method.rank"}


def made(**given) -> Translation:
    t = Translation("A tool", given)
    t.settings |= {"model.quantize": "nf4"} if given.get("nf4") else {}
    updates.kind(t, "dora", "init", CARRIED, "tuner")
    t.finish(CARRIED, {}, {}, "tuner nf4")
    return t


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, {"method.name": "lora"}),
        ({"dora": False}, {"method.name": "lora"}),
        ({"dora": "true"}, {"method.name": "dora"}),
        ({"init": "pissa"}, {"method.name": "pissa", "method.niter": "exact"}),
        ({"init": "pissa_niter_16"}, {"method.name": "pissa", "method.niter": 16}),
        ({"init": "gaussian"}, {"method.name": "lora", "method.init": "gaussian"}),
        ({"init": "orthogonal"}, {"method.name": "lora", "method.init": "orthogonal"}),
        ({"init": "loftq", "nf4": True}, {"method.name": "lora", "method.init": "loftq", "model.quantize": "nf4"}),
        ({"init": True}, {"method.name": "lora"}),
        ({"init": "true"}, {"method.name": "lora"}),
        ({"init": "pissa", "dropout": 0.1}, {"method.name": "pissa", "method.niter": "exact"}),
    ],
    ids=str,
)
def test_what_becomes_of_the_switches(given, settings):
    assert made(**given).settings == settings


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"dora": True, "init": "pissa"}, "init: pissa: DoRA begins with B = 0 here, as LoRA does"),
        ({"dora": True, "init": "gaussian"}, "init: gaussian: DoRA has one way to begin here"),
        ({"init": "loftq"}, "init: loftq: LoftQ makes up for what NF4 rounds away; the base is not quantised"),
        ({"init": "corda"}, "init: corda: no beginning of corda here; LoRA begins as usual (B = 0)"),
        ({"init": "pissa", "dropout": 0.1}, "dropout: 0.1: PiSSA has no dropout here"),
    ],
    ids=str,
)
def test_what_cannot_be_carried_over_is_said(given, line):
    assert [each for each in made(**given).left if each.startswith(line)]


def test_where_a_setting_came_from():
    t = made(dora=True, tuner="lora")
    assert t.origins["method.name"] == "tuner, dora" and t.carried == ["tuner, dora -> method.name = dora"]


def test_modules_and_tokens_beside_the_updates():
    t = Translation("A tool", {"beside": "all-embedding, lm_head", "ids": {"embed_tokens": [3, 4]}, "more": {"a": [1], "b": [2]}})
    updates.beside(t, "beside")
    updates.tokens(t, "ids")
    assert t.settings == {"method.modules_to_save": ["lm_head"], "method.trainable_tokens": [3, 4]}
    assert t.left == ["beside: all-embedding: modules are named by the endings of their paths: embed_tokens, lm_head"]
    updates.tokens(t, "more")
    assert t.left[-1].endswith("one list of ids is taken, for the embedding and a head tied to it")
