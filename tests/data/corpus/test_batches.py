"""Steps and rows: nothing lost, nothing twice, nothing that depends on packing, targets where they belong."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from tests.tiny_models import made_documents, some_documents
from tunesmith.data.corpus.batches import Plan, make_row

LENGTHS = [int(n) for n in np.random.default_rng(0).integers(2, 60, 101)]
DOCUMENTS = some_documents(LENGTHS)


def plan(tokens_per_step=200, row_tokens=100, seed=0, **others):
    return Plan(DOCUMENTS, tokens_per_step, row_tokens, seed, **others)


def members(made, steps):
    return [made.members(step).tolist() for step in steps]


@pytest.mark.parametrize("tokens_per_step", [1, 50, 200, 1000, 10**6])
def test_every_document_once_an_epoch_and_no_empty_step(tokens_per_step):
    made = plan(tokens_per_step)
    for epoch in range(3):
        steps = members(made, range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch))
        assert all(steps) and sorted(chain(*steps)) == list(range(101))


@pytest.mark.parametrize("trial", range(60))
def test_any_lengths_at_all(trial):
    chance = np.random.default_rng(trial)
    lengths = [int(n) for n in chance.integers(1, chance.integers(2, 300), chance.integers(1, 40))]
    row_tokens, documents = int(chance.integers(1, 400)), some_documents(lengths)
    made = Plan(documents, int(chance.integers(1, 500)), row_tokens, seed=trial)
    steps = members(made, range(made.steps_per_epoch))
    assert all(steps) and sorted(chain(*steps)) == list(range(len(lengths)))
    rows = [row for step in range(made.steps_per_epoch) for row in made.rows(step)]
    assert all(len(row.ids_T) <= row_tokens or len(row.documents) == 1 for row in rows)
    assert sum(row.tokens for row in rows) == documents.tokens == made.tokens_in(made.steps_per_epoch)
    assert sum(len(row.targets_N) for row in rows) == documents.learned_tokens


def test_steps_are_about_as_large_as_asked():
    made = plan(200)
    sizes = [sum(row.tokens for row in made.rows(step)) for step in range(made.steps_per_epoch)]
    assert made.steps_per_epoch == round(DOCUMENTS.tokens / 200)
    assert np.mean(sizes) == pytest.approx(200, rel=0.05) and min(sizes) > 100 and max(sizes) < 300


def test_one_huge_document_leaves_no_step_empty():
    made = Plan(some_documents([5000, 3, 3, 3]), 1000, 6000, 0)
    assert made.steps_per_epoch == 4 and all(len(made.members(step)) == 1 for step in range(4))


def order(made, epoch=0):
    return list(chain(*members(made, range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch))))


def test_the_order_is_another_one_in_every_epoch_and_for_every_seed():
    first = order(plan())
    assert first != order(plan(), epoch=1) and first != order(plan(seed=1)) and first != sorted(first)
    assert order(plan()) == first


def test_a_step_is_a_function_of_its_number_alone():
    """No position has to be saved: step 40 asked for first is step 40 of a whole run."""
    in_order = [plan().rows(step) for step in range(41)][-1]
    for one, other in zip(plan().rows(40), in_order, strict=True):
        assert one.documents == other.documents and torch.equal(one.ids_T, other.ids_T)


def test_packing_does_not_decide_which_documents_a_step_has():
    for step in range(20):
        packed, single = plan().rows(step), plan(pack=False).rows(step)
        assert sorted(d for row in packed for d in row.documents) == sorted(row.documents[0] for row in single)
        assert all(len(row.documents) == 1 for row in single) and len(packed) < len(single)


def test_rows_are_full_but_never_too_full():
    rows = [row for step in range(plan().steps_per_epoch) for row in plan().rows(step)]
    assert all(row.tokens <= 100 and sum(row.lengths) == len(row.ids_T) for row in rows)
    whole = Plan(DOCUMENTS, 10**6, 100, 0).rows(0)
    assert sum(row.tokens for row in whole) / (100 * len(whole)) > 0.97


def test_epochs_and_fractions_of_them():
    made = plan(200)
    one = made.steps_per_epoch
    assert [made.steps_for(epochs) for epochs in (1, 2, 0.5, 1e-9)] == [one, 2 * one, round(one / 2), 1]
    for steps in (1, one // 2, one, one + 3, 3 * one):
        assert made.tokens_in(steps) == sum(row.tokens for step in range(steps) for row in made.rows(step))
    assert made.tokens_in(0) == 0 and made.tokens_in(2 * one) == 2 * DOCUMENTS.tokens


def by_hand():
    """Three documents: [10 11 12 13], [20 21], [30 31 32]; learned are 12, 13, 21, 31."""
    ids_N = np.array([10, 11, 12, 13, 20, 21, 30, 31, 32], np.uint32)
    learned_N = np.array([0, 0, 1, 1, 0, 1, 0, 1, 0], np.bool_)
    return made_documents(ids_N, learned_N, np.array([0, 4, 6, 9]))


def test_targets_by_hand():
    row = make_row(by_hand(), [2, 0, 1])
    assert row.ids_T.tolist() == [30, 31, 32, 10, 11, 12, 13, 20, 21] and row.ids_T.dtype == torch.int64
    assert row.lengths == (3, 4, 2) and row.documents == (2, 0, 1)
    assert row.hidden_N.tolist() == [0, 4, 5, 7] and row.targets_N.tolist() == [31, 12, 13, 21]
    assert torch.equal(row.ids_T[row.hidden_N + 1], row.targets_N)
    assert (row.tokens, row.computed_tokens) == (9, 9)


def test_virtual_tokens_stand_in_front_of_every_document():
    row = make_row(by_hand(), [1, 2], range(90, 92))
    assert row.ids_T.tolist() == [90, 91, 20, 21, 90, 91, 30, 31, 32]
    assert row.lengths == (4, 5)
    assert row.hidden_N.tolist() == [2, 6] and row.targets_N.tolist() == [21, 31]
    assert (row.tokens, row.computed_tokens) == (5, 9)


def test_a_documents_first_token_is_a_target_only_behind_virtual_ones():
    documents = by_hand()
    documents.learned_N[4] = True
    assert make_row(documents, [1]).targets_N.tolist() == [21]
    row = make_row(documents, [1], range(90, 91))
    assert row.hidden_N.tolist() == [0, 1] and row.targets_N.tolist() == [20, 21]


def test_labels_stand_behind_their_document_and_are_not_fed():
    """Two documents whose learned tokens have the labels 2, 0 and 1."""
    ids_N = np.array([10, 11, 12, 2, 0, 20, 21, 1], np.uint32)
    learned_N = np.array([1, 0, 1, 0, 0, 0, 1, 0], np.bool_)
    documents = replace(made_documents(ids_N, learned_N, np.array([0, 5, 8])), labelled=True)
    assert documents.lengths_D.tolist() == [3, 2] and documents.tokens == 5 and documents.take(np.array([1])).labelled
    row = make_row(documents, [1, 0], range(90, 92))
    assert row.ids_T.tolist() == [90, 91, 20, 21, 90, 91, 10, 11, 12] and row.lengths == (4, 5)
    assert row.hidden_N.tolist() == [3, 6, 8] and row.targets_N.tolist() == [1, 2, 0]
    assert (row.tokens, row.computed_tokens) == (5, 9)


def test_rows_leave_room_for_virtual_tokens():
    made = plan(row_tokens=100, virtual_ids=range(300, 308))
    rows = [row for step in range(made.steps_per_epoch) for row in made.rows(step)]
    assert all(len(row.ids_T) <= 100 and row.computed_tokens == row.tokens + 8 * len(row.documents) for row in rows)
    assert sum(row.tokens for row in rows) == DOCUMENTS.tokens == made.tokens_in(made.steps_per_epoch)
    assert Counter(d for row in rows for d in row.documents) == Counter(range(101))


def test_ids_beyond_31_bits_do_not_wrap():
    documents = made_documents(np.array([2**31 + 5, 7], np.uint32), np.array([False, True]), np.array([0, 2]))
    assert make_row(documents, [0]).ids_T.tolist() == [2**31 + 5, 7]
