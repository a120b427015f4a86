"""What goes into which row: full rows, and beginnings that are repeated or computed once in front of several rows."""

import time
from itertools import chain

import numpy as np
import pytest

from tunesmith.data.corpus.packing import Piece, best_fit, pack
from tunesmith.data.corpus.sharing import branch, branches_of, ends_in


def test_best_fit():
    assert best_fit([50, 30, 60, 40, 20], 100) == [[2, 3], [0, 1, 4]]
    assert best_fit([30, 70, 40], 100) == [[1, 0], [2]], "the fullest row that still holds it"
    assert best_fit([150, 10], 100) == [[0], [1]], "a document beyond the capacity stands alone"
    assert best_fit([], 100) == []


def test_best_fit_of_many_documents_is_quick():
    lengths = np.random.default_rng(0).integers(2, 400, 30_000).tolist()
    begun = time.perf_counter()
    rows = best_fit(lengths, 2048)
    assert time.perf_counter() - begun < 5, "an evaluation set is packed in one go; trying every row for every document takes minutes"
    assert sum(lengths) / (2048 * len(rows)) > 0.99 and sorted(chain(*rows)) == list(range(30_000))


def family(head, own, first=0, ending=()):
    """A beginning of `head` tokens, and documents of so many tokens behind it."""
    return branch(0, head, list(ending), [branch(head, head + length, [first + i]) for i, length in enumerate(own)])


def shape(piece):
    return [(each.begin, each.end, each.documents) for root in piece.roots for each in branches_of(root)]


def test_a_tree_that_fits_is_one_unit():
    assert pack([family(40, [10, 20, 30])], 100) == [Piece((family(40, [10, 20, 30]),))]


def test_trees_share_rows():
    pieces = pack([family(40, [10, 10]), family(20, [5, 5], first=2), branch(0, 10, [4])], 100)
    assert [len(piece.roots) for piece in pieces] == [3]


def test_a_short_beginning_is_repeated_in_front_of_what_fits_behind_it():
    pieces = pack([family(16, [84, 84, 40, 44], ending=[4])], 300)
    assert [sum(root.size for root in piece.roots) for piece in pieces] == [268], "it fits"
    capacity = 16 * 17  # the beginning is less than a sixteenth of it
    pieces = pack([family(16, [84, 84, 40, 144], ending=[4])], capacity)
    assert all(not piece.behind and sum(root.size for root in piece.roots) <= capacity for piece in pieces)
    assert [shape(piece)[0] for piece in pieces] == [(0, 16, (4,)), (0, 16, ())], "a document that ends with it ends once"
    assert sorted(chain(*(ends_in(root) for piece in pieces for root in piece.roots))) == [0, 1, 2, 3, 4]


def test_a_long_beginning_is_a_row_of_its_own_in_front_of_the_others():
    pieces = pack([family(40, [60, 50, 40], ending=[3])], 100)
    [head] = pieces
    assert [(root.begin, root.end, root.documents) for root in head.roots] == [(0, 40, (3,))]
    assert [shape(piece) for piece in head.behind] == [[(40, 100, (0,)), (40, 80, (2,))], [(40, 90, (1,))]]


def test_beginnings_that_are_long_one_after_the_other():
    """A head behind a head: 40 tokens for all, 30 more for two of the three groups."""
    inner = [branch(40, 70, [], [branch(70, 70 + n, [10 * group + n]) for n in (30, 29, 28, 27)]) for group in (1, 2)]
    [head] = pack([branch(0, 40, [], [*inner, branch(40, 45, [0])])], 100)
    assert [len(piece.behind) for piece in head.behind] == [2, 2, 0]
    assert [piece.roots[0].length for piece in head.behind] == [30, 30, 5]


def test_a_branch_that_does_not_fit_behind_a_repeated_beginning_is_cut_further():
    large = branch(4, 10, [], [branch(10, 10 + n, [n]) for n in (150, 149, 148)])
    pieces = pack([branch(0, 4, [], [large, branch(4, 20, [1])])], 200)
    assert sorted(chain(*(ends_in(root) for piece in pieces for root in piece.roots))) == [1, 148, 149, 150]
    assert all(piece.behind == () and sum(root.size for root in piece.roots) <= 200 for piece in pieces)
    assert all(root.begin == 0 for piece in pieces for root in piece.roots)


def test_a_document_beyond_a_row_stands_alone():
    pieces = pack([family(30, [500, 20, 30])], 100)
    [head] = pieces
    assert [shape(piece) for piece in head.behind] == [[(30, 530, (0,))], [(30, 60, (2,)), (30, 50, (1,))]]


@pytest.mark.parametrize("trial", range(40))
def test_no_row_is_too_full_and_no_document_is_lost(trial):
    chance = np.random.default_rng(trial)
    numbers = iter(range(10_000))

    def grown(begin, depth):
        end = begin + int(chance.integers(1, 40))
        if depth == 0 or chance.random() < 0.3:
            return branch(begin, end, [next(numbers)])
        ending = [next(numbers)] if chance.random() < 0.3 else []
        return branch(begin, end, ending, [grown(end, depth - 1) for _ in range(int(chance.integers(1, 6)))])

    roots, capacity = [grown(0, 4) for _ in range(3)], int(chance.integers(20, 400))
    longest = max(each.end for root in roots for each in branches_of(root))

    def held(pieces, above):
        for piece in pieces:
            size = sum(root.length if piece.behind else root.size for root in piece.roots)
            assert size <= capacity or (len(piece.roots) == 1 and not (piece.roots[0].branches and not piece.behind))
            assert not piece.behind or len(piece.roots) == 1
            assert all(root.begin == above for root in piece.roots) and above <= longest
            if piece.behind:
                yield from piece.roots[0].documents
                yield from held(piece.behind, piece.roots[0].end)
            else:
                yield from chain(*(ends_in(root) for root in piece.roots))

    assert sorted(held(pack(roots, capacity), 0)) == list(range(next(numbers)))
