"""LoRAs laid out anew: every layer's product stays what it was."""

from typing import Any, cast

import pytest
import torch

from tests.tiny_models import tiny
from tunesmith.export.even import even, rank_for
from tunesmith.methods.lora import LoRA
from tunesmith.methods.tuning import Tuning

Q0, Q1, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def uneven(model: Any) -> Tuning:
    adapter: dict[str, Any] = {}
    for path, rank, scale in ((Q0, 2, 1.0), (Q1, 5, 0.5), (UP1, 3, 2.0)):
        layer = model.get_submodule(path)
        adapter[path] = LoRA(layer.in_features, layer.out_features, rank, scale)
        for parameter in adapter[path].parameters():
            parameter.data.normal_()
    return Tuning(adapter, {})


def product(module: Any) -> torch.Tensor:
    return module.scale * module.B @ module.A


def test_one_rank_one_scale_the_same_products() -> None:
    model = tiny("llama")
    tuning = uneven(model)
    laid: dict[str, Any] = even(tuning, model, 8).adapter
    assert list(laid) == [Q0, Q1, UP1] and {(m.A.shape[0], m.scale) for m in laid.values()} == {(8, 2.0)}
    for path, module in tuning.adapter.items():
        torch.testing.assert_close(product(laid[path]), product(module), rtol=1e-6, atol=1e-6)
    assert {cast(Any, m).A.shape[0] for m in even(tuning, model).adapter.values()} == {5}, "the largest rank, where none is asked for"


def test_an_update_in_every_block() -> None:
    model = tiny("llama")
    laid: dict[str, Any] = even(uneven(model), model, 8, everywhere=True).adapter
    assert sorted(laid) == sorted([Q0, Q1, UP1, "model.layers.0.mlp.up_proj"])
    assert not product(laid["model.layers.0.mlp.up_proj"]).any()


def test_the_least_rank_that_holds_it() -> None:
    assert [rank_for(rank, (8, 16, 32)) for rank in (1, 8, 9, 32)] == [8, 8, 16, 32]
    with pytest.raises(LookupError):
        rank_for(33, (8, 16, 32))
