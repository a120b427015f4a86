"""The recompute ladder: no number changes, and what is kept falls from level to level."""

# mypy: disable-error-code="func-returns-value"

from functools import partial

import pytest
import torch

from tests.step.test_forward import ALL, DOCUMENTS, TRUSTED, gradients, tuned
from tests.step.test_host_store import LateCopies
from tunesmith.data.corpus.batches import make_row
from tunesmith.models import slots
from tunesmith.models.parts import recipes, standing
from tunesmith.step.forward import prepare
from tunesmith.step.host_store import HostStore
from tunesmith.step.recompute import LEVELS, offload_blocks, place, recompute_blocks

FAMILIES = ["llama", "gemma3", "gpt2", "mixtral"]


def kept_bytes(forward):
    """What a row's forward pass keeps outside the checkpoints."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward.loss(make_row(DOCUMENTS, ALL))
    return sum(kept.values())


def put_all_in(model, monkeypatch):
    """Off-load everything, however small the miniature's tensors are; the store and what it copies with."""
    monkeypatch.setattr("tunesmith.step.recompute.LEAST", 1)
    copies = LateCopies()
    offload_blocks(model, HostStore(copies))
    return copies


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_blocks_alone_or_all_off_loaded_change_no_gradient(name, monkeypatch):
    found = []
    for change in (None, partial(recompute_blocks, first=1), recompute_blocks, partial(put_all_in, monkeypatch=monkeypatch)):
        model, tuning = tuned(name)
        forward = prepare(model, TRUSTED, "sdpa")
        if change is not None:
            change(model)
        gradients(forward, tuning)
        found.append(gradients(forward, tuning))  # the second row: buffers are used again
    for loss, each in found[1:]:
        assert loss == found[0][0] and all(torch.equal(each[key], value) for key, value in found[0][1].items())


def test_what_is_kept_falls_with_every_block():
    sizes = []
    for first in (0, 1, 2):
        model, _ = tuned()
        forward = prepare(model, TRUSTED, "sdpa")
        recompute_blocks(model, first)
        sizes.append(kept_bytes(forward))
    assert sizes[0] > 1.3 * sizes[1] > 1.6 * sizes[2]


def test_every_block_but_the_last_is_off_loaded(monkeypatch):
    model, tuning = tuned()
    forward = prepare(model, TRUSTED, "sdpa")
    copies = put_all_in(model, monkeypatch)
    gradients(forward, tuning)
    gradients(forward, tuning)
    assert len(copies.sent_for) == 2 * (len(slots.blocks(model)) - 1)
    assert copies.buffers == len(slots.blocks(model)) - 1


def test_small_tensors_are_not_copied(monkeypatch):
    model, tuning = tuned()
    forward = prepare(model, TRUSTED, "sdpa")
    copies = put_all_in(model, monkeypatch)
    monkeypatch.setattr("tunesmith.step.recompute.LEAST", 1 << 30)
    gradients(forward, tuning)
    assert copies.buffers == 0


@pytest.mark.parametrize("level", LEVELS)
def test_levels_by_name(level):
    model, _ = tuned()
    notes = place(model, level)
    wrapped = ["forward" in vars(block) for _, block in slots.blocks(model)]
    assert wrapped == [level != "none"] * len(wrapped)
    assert bool(notes) == (level == "offload"), "without a GPU it is said what off-loading is"


def test_dropout_is_drawn_again_where_some_blocks_are_computed_again(monkeypatch):
    found = []
    for change in (None, partial(recompute_blocks, first=1), partial(put_all_in, monkeypatch=monkeypatch)):
        model, tuning = tuned(dropout=0.3)
        forward = prepare(model, TRUSTED, "sdpa")
        tuning.train()
        if change is not None:
            change(model)
        torch.manual_seed(7)
        found.append(gradients(forward, tuning))
    for loss, each in found[1:]:
        assert loss == found[0][0] and all(torch.equal(each[key], value) for key, value in found[0][1].items())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "mixtral"])
def test_elementwise_makes_outputs_of_parts_again_and_changes_no_gradient(name, monkeypatch):
    made, output = [], recipes.Recipe.output
    monkeypatch.setattr(recipes.Recipe, "output", lambda recipe: made.append(recipe) or output(recipe))
    found = []
    for level in ("none", "elementwise"):
        model, tuning = tuned(name)
        forward = prepare(model, TRUSTED, "sdpa")
        place(model, level)
        for forwards in standing.recognised(model, torch.float32).values():
            standing.stand(model, forwards)
        found.append((gradients(forward, tuning), len(made)))
    (plain, before), ((loss, each), after) = found
    assert before == 0 < after and loss == plain[0] and all(torch.equal(each[key], value) for key, value in plain[1].items())
