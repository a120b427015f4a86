"""The report of what documents begin with in common."""

import numpy as np

from tests.data.corpus.test_sharing import documents_of, family, ids
from tests.tiny_models import some_documents
from tunesmith.data.corpus import beginnings as report
from tunesmith.data.corpus.batches import Plan, flat
from tunesmith.data.corpus.beginnings import beginnings, computed_tokens


def told(documents):
    return [(found.documents, found.ids_T.tolist()) for found in beginnings(documents)]


def test_beginnings_by_what_they_take():
    """A prompt of 100 tokens for ten, of which four go on with 30 more; another prompt for three; one without."""
    sequences = [ids((0, 100), *([(200, 30)] if i < 4 else []), (1000 + 100 * i, 20)) for i in range(10)]
    sequences += [ids((5000, 50), (6000 + 100 * i, 20)) for i in range(3)] + [ids((9000, 70))]
    assert told(documents_of(sequences)) == [
        (10, list(range(100))),
        (3, list(range(5000, 5050))),
        (4, [*range(100), *range(200, 230)]),
    ]


def test_a_beginning_of_a_hundredth_of_the_tokens_is_not_worth_a_word():
    chance = np.random.default_rng(0)
    sequences = [chance.integers(0, 50_000, 300).astype(np.uint32) for _ in range(40)]
    pair = [ids((70_000, 100), (80_000 + 100 * i, 9)) for i in range(2)]
    assert told(documents_of(sequences + pair)) == []
    assert told(documents_of(sequences[:5] + pair)) == [(2, list(range(70_000, 70_100)))]


def test_equal_documents_are_a_beginning():
    assert told(documents_of([ids((0, 40))] * 3)) == [(3, list(range(40)))]


def test_of_many_documents_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(report, "LOOKED_AT", 25)
    assert told(documents_of(family(100))) == [(100, list(range(100)))]


def test_tokens_of_an_epoch():
    documents = documents_of(family(60, own=7))
    plan = Plan(documents, 1500, 400, 3)
    alone, once = computed_tokens(plan)
    assert alone == 60 * 107
    assert once == sum(row.computed_tokens for step in range(plan.steps_per_epoch) for row in flat(plan.shared(True).rows(step)))
    assert once == 100 * plan.steps_per_epoch + 60 * 7, "once a step"


def test_tokens_of_an_epoch_from_some_of_its_steps(monkeypatch):
    plan = Plan(documents_of(family(400, own=7)), 1070, 400, 3)
    exact = computed_tokens(plan)
    monkeypatch.setattr(report, "STEPS", 8)
    alone, once = computed_tokens(plan)
    assert alone == exact[0] and abs(once - exact[1]) < 0.05 * exact[1]


def test_virtual_tokens_are_computed_too():
    plan = Plan(some_documents([9, 14, 6]), 1000, 400, 0, virtual_ids=range(9000, 9020))
    alone, once = computed_tokens(plan)
    assert alone == 29 + 60 and once == sum(row.computed_tokens for row in plan.shared(True).rows(0)) < alone
