"""A short piece of a row computes, and is short."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_models import VOCABULARY, some_documents, tiny
from tunesmith.data.corpus.batches import make_row
from tunesmith.models.proof import Proof
from tunesmith.step.forward import prepare
from tunesmith.step.piece import LEARNED, SEGMENTS, TOKENS, piece

DOCUMENTS = some_documents([200, 5, 170, 80, 90, 60])


def test_the_first_documents_up_to_their_last_learned_token():
    row = make_row(DOCUMENTS, range(6))
    short = piece(row, VOCABULARY)
    assert len(short.lengths) == SEGMENTS and len(short.ids_T) == sum(short.lengths) == short.computed_tokens <= TOKENS
    assert short.lengths[1] <= 5 and len(short.hidden_N) == len(short.targets_N) > 0
    assert short.hidden_N.max() < len(short.ids_T) and len(short.hidden_N) <= SEGMENTS * LEARNED


def test_targets_stay_those_of_their_positions():
    """Ids of this row say where they stand, and targets what follows."""
    row = make_row(DOCUMENTS, range(6))
    marked = replace(row, ids_T=torch.arange(len(row.ids_T)), targets_N=row.hidden_N.clone())
    short = piece(marked, 10**6)
    assert torch.equal(short.ids_T[short.hidden_N], short.targets_N)


def test_placeholders_are_kept_and_a_short_row_is_all_of_it():
    row = make_row(some_documents([30, 4]), [0, 1], range(VOCABULARY, VOCABULARY + 3))
    short = piece(row, VOCABULARY, tokens=8)
    assert int((short.ids_T >= VOCABULARY).sum()) == int((row.ids_T >= VOCABULARY).sum()) == 6
    whole = piece(make_row(some_documents([7, 4]), [0, 1]), VOCABULARY)
    assert whole.targets_N.tolist() == make_row(some_documents([7, 4]), [0, 1]).targets_N.tolist()


@pytest.mark.parametrize("tokens", [12, TOKENS])
def test_a_forest_stays_one(tokens):
    row = make_row(DOCUMENTS, [0, 1, 2])
    forest = replace(row, parents=(-1, 0, 0))
    short = piece(forest, VOCABULARY, tokens)
    assert short.parents == (-1, 0, 0) and len(short.lengths) == 3


def test_rows_behind_are_cut_too():
    front = make_row(DOCUMENTS, [0])
    row = replace(
        front, hidden_N=front.hidden_N[:0], targets_N=front.targets_N[:0], behind=tuple(make_row(DOCUMENTS, [i]) for i in (1, 2, 3))
    )
    short = piece(row, VOCABULARY)
    assert len(short.behind) == 2 and len(short.lengths) == 1
    assert sum(len(one.ids_T) for one in (short, *short.behind)) <= TOKENS and all(len(one.hidden_N) for one in short.behind)


def test_something_is_learned_where_the_first_documents_learn_nothing():
    row = make_row(DOCUMENTS, range(6))
    late = row.hidden_N >= sum(row.lengths[:5])
    short = piece(replace(row, hidden_N=row.hidden_N[late], targets_N=row.targets_N[late]), VOCABULARY)
    assert len(short.hidden_N) and len(short.lengths) == 6


def test_it_is_computed_as_any_row():
    forward = prepare(tiny("llama"), Proof(True, True, ()), "sdpa")
    assert torch.isfinite(forward.loss(piece(make_row(DOCUMENTS, range(6)), VOCABULARY)))
