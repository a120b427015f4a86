"""Where segments stand, which queries see which keys, and which positions they have."""

# mypy: disable-error-code="func-returns-value,var-annotated"

import pytest
import torch

from tunesmith.models.forest import Crossing, Forest, forest_of, positions, row_arguments

LENGTHS, PARENTS = (4, 3, 2, 3, 2), (-1, 0, 0, -1, 3)


def test_without_parents_nothing_is_crossed():
    forest = forest_of((3, 0, 2))
    assert forest.starts == (0, 3, 3, 5) and forest.tokens == 5
    assert forest.crossings == () and forest.above == (0, 0, 0)
    assert positions(forest, 7).tolist() == [7, 8, 9, 7, 8]


def test_the_queries_behind_a_segment_are_one_stretch():
    forest = forest_of(LENGTHS, PARENTS)
    assert forest.crossings == (Crossing((0, 4), (4, 9), 0), Crossing((9, 12), (12, 14), 0))
    assert forest.above == (0, 4, 4, 0, 3)
    assert positions(forest).tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2, 3, 4]


def test_nested_segments():
    forest = forest_of((4, 2, 3, 1, 5), (-1, 0, 1, 1, 0))
    assert [(c.keys, c.queries, c.depth) for c in forest.crossings] == [((0, 4), (4, 15), 0), ((4, 6), (6, 10), 1)]
    assert forest.path(3) == [0, 1] and forest.path(4) == [0] and forest.path(0) == []
    assert positions(forest, 10).tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18, 16, 14, 15, 16, 17, 18]


def test_every_pair_of_query_and_key_is_in_one_part_or_none():
    """Counted over random forests: a query sees its path and itself, each key once."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        count = int(torch.randint(1, 9, (1,), generator=generator))
        lengths = tuple(torch.randint(0, 4, (count,), generator=generator).tolist())
        parents, path = [], []
        for segment in range(count):
            keep = int(torch.randint(0, len(path) + 1, (1,), generator=generator))
            path = path[:keep]
            parents.append(path[-1] if path else -1)
            path.append(segment)
        forest = forest_of(lengths, tuple(parents))
        seen_TT = torch.zeros(forest.tokens, forest.tokens, dtype=torch.int64)
        for begin, end in forest.segments:
            seen_TT[begin:end, begin:end] += torch.ones(end - begin, end - begin, dtype=torch.int64).tril()
        for crossing in forest.crossings:
            seen_TT[slice(*crossing.queries), slice(*crossing.keys)] += 1
        wanted_TT = torch.zeros_like(seen_TT)
        for segment, (begin, end) in enumerate(forest.segments):
            places = [t for s in (*forest.path(segment), segment) for t in range(*forest.segments[s])]
            for query in range(begin, end):
                wanted_TT[query, [t for t in places if t <= query]] = 1
            assert positions(forest)[begin:end].tolist() == list(range(len(places) - (end - begin), len(places)))
        assert torch.equal(seen_TT, wanted_TT)


@pytest.mark.parametrize("parents", [(-1, 0, 1, 0, 1), (-1, 1, 0, 0, 0), (0, 0, 0, 0, 0)])
def test_segments_that_are_in_no_depth_first_order_are_our_own_mistake(parents):
    with pytest.raises(AssertionError):
        forest_of(LENGTHS, parents)


def test_a_part_of_a_forest_is_a_forest():
    part = forest_of((4, 2, 3, 1, 5), (-1, 0, 1, 1, 0)).part([0, 1, 3, 4])
    assert (part.starts, part.parents) == ((0, 4, 6, 7, 12), (-1, 0, 1, 0))


def test_what_is_derived_is_made_once():
    forest, calls = Forest((0, 3)), []
    assert [forest.once("a", lambda: calls.append(1) or 5) for _ in range(3)] == [5, 5, 5] and len(calls) == 1


def test_row_arguments():
    arguments = row_arguments((3, 1, 2), torch.device("cpu"), 2, (-1, 0, -1))
    assert arguments["position_ids"].tolist() == [[2, 3, 4, 5, 2, 3]]
    assert arguments["cu_seq_lens_q"].tolist() == arguments["cu_seq_lens_k"].tolist() == [0, 3, 4, 6]
    assert arguments["cu_seq_lens_q"].dtype == torch.int32
    assert (arguments["max_length_q"], arguments["max_length_k"]) == (3, 3)
    assert arguments["forest"].starts == (0, 3, 4, 6) and arguments["forest"].kept is None
