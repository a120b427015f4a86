from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import made_documents
from tunesmith.data.corpus.batches import make_row
from tunesmith.data.corpus.documents import Documents
from tunesmith.models import attention
from tunesmith.models import load as loading
from tunesmith.step.forward import Forward
from tunesmith.train import nonfinite

POISON = 200  # a token whose embedding is infinite


@pytest.fixture
def forward(tiny_llama: Path) -> Forward:
    model = loading.load(tiny_llama, dtype=torch.float32).model
    model.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("inf")
    return Forward(model, own_head=True, packed=True)


def documents(poisoned: set[int], count: int = 12) -> Documents:
    """Documents of five tokens, of which the last three are learned; those of `poisoned` hold the token."""
    ids = [[10 + d, POISON if d in poisoned else 11, 12, 13, 14] for d in range(count)]
    learned = np.tile(np.array([False, False, True, True, True]), count)
    made = made_documents(np.array(ids, np.uint32).ravel(), learned, np.arange(0, 5 * count + 1, 5))
    return replace(made, files=("rows.jsonl",))


def test_only_the_guilty_rows_are_named(forward: Forward) -> None:
    found = documents({4, 7})
    rows = [make_row(found, [0, 1, 2]), make_row(found, [3, 4, 5, 7])]
    losses = [forward.loss(row).detach() for row in rows]
    assert torch.isfinite(losses[0]) and not torch.isfinite(losses[1])
    sentence = nonfinite.explain(found, forward, rows, losses)
    assert sentence == (
        "the loss is not finite in rows.jsonl:5, rows.jsonl:8; the first module whose output is not finite is model.embed_tokens"
    )


def test_many_rows_are_counted(forward: Forward) -> None:
    found = documents(set(range(12)))
    row = make_row(found, list(range(12)))
    assert "rows.jsonl:8 and 4 more; the first module" in nonfinite.explain(found, forward, [row], [forward.loss(row).detach()])


def test_the_module_is_named_where_it_begins(forward: Forward) -> None:
    with torch.no_grad():
        forward.model.get_submodule("model.layers.1.mlp.up_proj").weight[3] = float("nan")
    found = documents(set())
    row = make_row(found, [0])
    sentence = nonfinite.explain(found, forward, [row], [forward.loss(row).detach()])
    assert sentence.endswith("rows.jsonl:1; the first module whose output is not finite is model.layers.1.mlp.up_proj")


def test_a_gradient_alone_has_no_row(forward: Forward) -> None:
    found = documents(set())
    assert nonfinite.explain(found, forward, [make_row(found, [0])], [torch.tensor(1.0)]) == "the gradient norm is not finite"
