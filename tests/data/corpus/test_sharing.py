"""Rows in which shared beginnings stand once hold exactly the documents: every token, position and learned pair of each."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_models import made_documents, some_documents
from tunesmith.data.corpus.batches import Plan, flat, make_row, make_rows
from tunesmith.data.corpus.sharing import LEAST, Branch, branches_of, common_lengths, ends_in, forest

RNG = np.random.default_rng(0)


def ids(*runs):
    """A sequence of runs of ascending ids: (begin, how many)."""
    return np.concatenate([np.arange(begin, begin + count) for begin, count in runs]).astype(np.uint32)


def drawn(roots):
    return [(each.begin, each.end, each.documents) for root in roots for each in branches_of(root)]


def documents_of(sequences, learned=None):
    """Documents of these ids; those learned are drawn, never the first token."""
    flags = [np.append(False, np.random.default_rng(i).random(len(s) - 1) < 0.5) for i, s in enumerate(sequences)]
    ends = np.cumsum([0, *map(len, sequences)])
    return made_documents(np.concatenate(sequences), np.concatenate(learned or flags), ends)


def test_common_lengths():
    sequences = [ids((0, 5)), ids((0, 7)), ids((0, 3), (50, 9)), ids((9, 1)), ids((9, 1))]
    assert common_lengths(sequences).tolist() == [5, 3, 0, 1]
    assert common_lengths(sequences[:1]).tolist() == [] == common_lengths([]).tolist()


def test_a_forest_by_hand():
    """Two share a system prompt and a question, a third the prompt, a fourth nothing, the fifth repeats the first."""
    prompt, question = (0, 100), (200, 30)
    sequences = [
        ids(prompt, question, (300, 10)),
        ids((900, 8)),
        ids(prompt, (500, 20)),
        ids(prompt, question, (400, 12)),
        ids(prompt, question, (300, 10)),
    ]
    assert drawn(forest(sequences)) == [
        (0, 100, ()), (100, 130, ()), (130, 140, (0, 4)), (130, 142, (3,)), (100, 120, (2,)),
        (0, 8, (1,)),
    ]  # fmt: skip


def test_a_document_that_another_goes_on_from_ends_where_that_one_goes_on():
    """Several turns of one conversation, each a row with the whole history."""
    sequences = [ids((0, 120), (500, 40)), ids((0, 40)), ids((0, 80)), ids((0, 120))]
    assert drawn(forest(sequences)) == [(0, 40, (1,)), (40, 80, (2,)), (80, 120, (3,)), (120, 160, (0,))]


def test_virtual_tokens_in_front_are_shared_too():
    sequences = [ids((10, 5)), ids((20, 5)), ids((30, 5))]
    assert drawn(forest(sequences, in_front=20)) == [(0, 20, ()), (20, 25, (0,)), (20, 25, (1,)), (20, 25, (2,))]
    assert [each.begin for each in forest(sequences, in_front=LEAST - 1)] == [0, 0, 0], "too few to be worth a part"


def test_short_beginnings_are_not_split_off():
    assert drawn(forest([ids((0, LEAST - 1), (100, 9)), ids((0, LEAST - 1), (200, 9))])) == [(0, 24, (0,)), (0, 24, (1,))]
    assert len(drawn(forest([ids((0, LEAST), (100, 9)), ids((0, LEAST), (200, 9))]))) == 3


def test_a_beginning_is_split_off_only_where_it_saves_a_share_of_what_stands_behind_it():
    def two(behind):
        return drawn(forest([ids((0, 32), (1000, behind)), ids((0, 32), (9000, behind))]))

    assert len(two(256)) == 3 and len(two(257)) == 2


def test_documents_that_part_a_little_further_on_count_for_the_beginning():
    """The first word of each differs within a few tokens: the beginning is shared by all of them, not by two."""
    sequences = [ids((0, 24), (100, 1 + i % 3), (1000 * i, 300)) for i in range(12)]
    [root] = forest(sequences)
    assert (root.begin, root.end) == (0, 25) and len(root.branches) == 12
    assert root.size == sum(map(len, sequences)) - 11 * 25


def test_size_and_first():
    for root in forest([ids((0, 100), (500 + 50 * i, 40)) for i in (3, 1, 2, 1)]):
        for each in branches_of(root):
            assert each.size == sum(other.length for other in branches_of(each)) and each.first == min(ends_in(each))


def rebuilt(rows, front=()):
    """Walk rows and those behind them: which documents end in each, the paths in it, every learned pair with what stands before."""
    ends, pairs = [], []
    for row in rows:
        at, parents = 0, row.parents or (-1,) * len(row.lengths)
        segments: list[tuple[int, ...]] = []
        for number, (length, parent) in enumerate(zip(row.lengths, parents, strict=True)):
            assert parent < number and (parent < 0 or parent == number - 1 or number - 1 in below(parents, parent, number))
            before = segments[parent] if parent >= 0 else tuple(front)
            own = tuple(row.ids_T[at : at + length].tolist())
            segments.append(before + own)
            here = (row.hidden_N >= at) & (row.hidden_N < at + length)
            for position, target in zip(row.hidden_N[here].tolist(), row.targets_N[here].tolist(), strict=True):
                pairs.append((segments[-1][: len(before) + position - at + 1], target))
            at += length
        assert at == len(row.ids_T) == row.computed_tokens == sum(row.lengths)
        ends.append((row.documents, segments))
        if row.behind:
            assert len(row.lengths) == 1
            more_ends, more_pairs = rebuilt(row.behind, segments[0])
            ends += more_ends
            pairs += more_pairs
    return ends, pairs


def below(parents, root, until):
    found = {root}
    for number in range(root + 1, until):
        if parents[number] in found:
            found.add(number)
    return found


def check_rows(rows, sequences, documents, members, virtual=()):
    """The rows are the documents `members`, each behind `virtual`."""
    front = tuple(virtual)
    ends, pairs = rebuilt(rows)
    for ending, segments in ends:
        for document in ending:
            assert front + tuple(sequences[document].tolist()) in segments
    assert Counter(chain(*(ending for ending, _ in ends))) == Counter(members)
    expected: Counter[tuple[tuple[int, ...], int]] = Counter()
    for document in members:
        begin, length = int(documents.begin_D[document]), int(documents.lengths_D[document])
        learned = np.flatnonzero(documents.learned_N[begin : int(documents.end_D[document])])
        fed = front + tuple(documents.ids_N[begin : begin + length].tolist())
        if documents.labelled:
            labels = documents.ids_N[begin + length : int(documents.end_D[document])].tolist()
            expected.update((fed[: len(front) + at + 1], label) for at, label in zip(learned.tolist(), labels, strict=True))
        else:
            expected.update((fed[: len(front) + at], fed[len(front) + at]) for at in learned.tolist() if len(front) + at)
    assert Counter(pairs) == expected
    everything = list(flat(rows))
    assert sum(row.tokens for row in everything) == sum(len(sequences[document]) for document in members)


@st.composite
def forests(draw):
    """Documents that were grown from one another: cut somewhere and gone on with, repeated, or new."""
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 24))
    chance, longest = np.random.default_rng(seed), draw(st.sampled_from([6, 40, 150]))
    letters = draw(st.sampled_from([2, 1000]))
    sequences: list[np.ndarray] = []
    for _ in range(count):
        kept = sequences[int(chance.integers(len(sequences)))] if sequences and chance.random() < 0.8 else np.zeros(0, np.uint32)
        kept = kept[: int(chance.integers(len(kept) + 1))] if chance.random() < 0.7 else kept
        more = chance.integers(0, letters, int(chance.integers(0 if len(kept) else 1, longest))).astype(np.uint32)
        sequences.append(np.concatenate([kept, more]))
    return sequences


@settings(max_examples=300, deadline=None)
@given(forests(), st.integers(0, 20), st.integers(1, 600), st.booleans())
def test_rows_are_the_documents(sequences, in_front, row_tokens, labelled):
    documents = documents_of(sequences)
    virtual = range(5000, 5000 + in_front)
    if labelled:
        documents = with_labels(sequences)
    members = [*range(len(sequences)), 0]  # a row may come twice
    rows = make_rows(documents, members, row_tokens, True, virtual, share=True)
    check_rows(rows, sequences, documents, members, virtual)
    everything, unshared = list(flat(rows)), make_rows(documents, members, row_tokens, True, virtual)
    assert sum(row.computed_tokens for row in everything) <= sum(row.computed_tokens for row in unshared)
    assert all(row.computed_tokens <= row_tokens or len(row.lengths) == 1 for row in everything)
    again = make_rows(documents, members, row_tokens, True, virtual, share=True)
    for one, other in zip(everything, flat(again), strict=True):
        assert same(one, other)


def with_labels(sequences):
    """Documents that end with one label for each learned token."""
    ids_N, learned_N, ends = [], [], [0]
    for number, sequence in enumerate(sequences):
        chance = np.random.default_rng(number)
        learned = chance.random(len(sequence)) < 0.3
        labels = chance.integers(0, 5, learned.sum()).astype(np.uint32)
        ids_N += [sequence, labels]
        learned_N += [learned, np.zeros(len(labels), np.bool_)]
        ends.append(ends[-1] + len(sequence) + len(labels))
    return replace(made_documents(np.concatenate(ids_N), np.concatenate(learned_N), np.array(ends)), labelled=True)


def same(one, other):
    """Equal in everything but the rows behind."""
    plain = ("lengths", "documents", "tokens", "computed_tokens", "parents")
    tensors = ("ids_T", "hidden_N", "targets_N")
    return all(getattr(one, name) == getattr(other, name) for name in plain) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )


def test_rows_without_anything_to_share_are_what_they_were():
    documents = documents_of([RNG.integers(0, 50_000, int(n)).astype(np.uint32) for n in RNG.integers(2, 60, 101)])
    for shared, plain in zip(
        make_rows(documents, range(101), 200, True, share=True), make_rows(documents, range(101), 200, True), strict=True
    ):
        assert same(shared, plain) and shared.parents == () and shared.behind == ()


def test_rows_that_are_not_packed_share_nothing():
    documents = documents_of([ids((0, 100), (500, 5)), ids((0, 100), (600, 5))])
    rows = make_rows(documents, [0, 1], 1000, False, share=True)
    assert [row.lengths for row in rows] == [(105,), (105,)]


def family(count, shared=100, own=20):
    return [ids((0, shared), (1000 + 100 * i, own)) for i in range(count)]


def test_a_row_by_hand():
    learned = [np.arange(120) >= 100] * 2 + [np.arange(9) == 8]
    documents = documents_of([*family(2), ids((700, 9))], learned)
    [row] = make_rows(documents, [2, 1, 0], 1000, True, share=True)
    assert row.lengths == (100, 20, 20, 9) and row.parents == (-1, 0, 0, -1) and row.documents == (1, 0, 2)
    assert row.ids_T.tolist() == [*range(100), *range(1100, 1120), *range(1000, 1020), *range(700, 709)]
    assert row.hidden_N.tolist() == [99, 99, *range(100, 119), *range(120, 139), 147], "both learn their first token from the last shared"
    assert row.targets_N.tolist() == [1100, 1000, *range(1101, 1120), *range(1001, 1020), 708]
    assert (row.tokens, row.computed_tokens) == (249, 149)


def test_a_beginning_for_more_documents_than_a_row_holds_is_computed_once():
    learned = [np.arange(120) >= 100] * 10
    documents = documents_of(family(10), learned)
    [head] = make_rows(documents, range(10), 128, True, share=True)
    assert head.lengths == (100,) and head.documents == () and head.tokens == 0 and head.computed_tokens == 100
    assert head.hidden_N.tolist() == [99] * 10 and head.targets_N.tolist() == [1000 + 100 * i for i in range(10)]
    assert [row.lengths for row in head.behind] == [(20,) * 6, (20,) * 4] and all(row.parents == () for row in head.behind)
    assert head.behind[0].hidden_N.tolist() == [n for n in range(120) if n % 20 != 19]
    assert sum(row.tokens for row in flat([head])) == 1200 and sum(row.computed_tokens for row in flat([head])) == 300


def test_equal_documents_are_one_path_and_learned_twice():
    documents = documents_of([ids((5, 40)), ids((5, 40))], [np.arange(40) >= 38] * 2)
    [row] = make_rows(documents, [0, 1], 100, True, share=True)
    assert row.lengths == (40,) and row.documents == (0, 1) and row.tokens == 80
    assert row.hidden_N.tolist() == [37, 38, 37, 38] and row.targets_N.tolist() == [43, 44, 43, 44]


def test_a_plan_that_shares_has_the_same_steps():
    documents = documents_of(family(60, own=7))
    plain = Plan(documents, 1500, 400, 3)
    shared = plain.shared(True)
    for step in range(plain.steps_per_epoch):
        rows = list(flat(shared.rows(step)))
        assert sorted(d for row in rows for d in row.documents) == sorted(plain.members(step).tolist())
        assert sum(row.computed_tokens for row in rows) < 0.3 * sum(row.computed_tokens for row in plain.rows(step))
    assert [row.lengths for row in shared.shared(False).rows(0)] == [row.lengths for row in plain.rows(0)]
    assert all(len(row.documents) == 1 and not row.behind for row in shared.alone().rows(0))


def test_the_words_of_the_plan_survive_each_other():
    shared = Plan(documents_of(family(4)), 1000, 400, 0).shared(True).behind(range(9000, 9016))
    assert shared.share and shared.virtual_ids == range(9000, 9016)
    [row] = make_rows(shared.documents, range(4), 400, True, shared.virtual_ids, share=True)
    assert row.lengths == (116, 20, 20, 20, 20) and row.ids_T[:17].tolist() == [*range(9000, 9016), 0]


def test_many_long_documents_take_little_work():
    """Each token is compared a bounded number of times, however much the documents share."""
    head = RNG.integers(0, 50_000, 3000)
    sequences = [np.concatenate([head, RNG.integers(0, 50_000, 200)]).astype(np.uint32) for _ in range(1000)]
    [root] = forest(sequences)
    assert isinstance(root, Branch) and root.end == 3000 and len(root.branches) == 1000 and root.size == 3000 + 200 * 1000


def test_a_long_chain_is_no_deep_recursion():
    sequences = [ids((0, 20 * (n + 1))) for n in range(2000)]
    roots = forest(sequences)
    assert sorted(chain(*map(ends_in, roots))) == list(range(2000))


@pytest.mark.parametrize("share", [True, False])
def test_one_document_and_none(share):
    assert make_rows(some_documents([5]), [], 100, True, share=share) == []
    [row] = make_rows(some_documents([5]), [0], 100, True, share=share)
    assert same(row, make_row(some_documents([5]), [0]))
