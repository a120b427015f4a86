"""What documents begin with in common, as a forest: what stands in several of them stands in it once.

    you are a helpful assistant . + hello                you are a helpful assistant .
    you are a helpful assistant . + what is 2 + 2 ?      |-- hello
    you are a helpful assistant . + what is the time ?   `-- what is
                                                             |-- 2 + 2 ?
                                                             `-- the time ?

Documents are sorted, so that those with a long common beginning are neighbours, and each is compared with its neighbour alone:
the work is that of reading all tokens a few times. Then a beginning is kept where computing it once pays.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

LEAST = 16  # tokens of a beginning that is kept: below that a call of the attention costs more than the tokens do
# A kept beginning is one more part that every token behind it attends to, and merging its output costs a few hundredths of such a
# token (reads and writes of the width, against matrix products of width times width): it is kept where it saves more than that.
WORTH = 16  # tokens behind a beginning for which it has to save one


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that stand once, and what goes on from them. Tokens are counted from a document's first one, whatever stands in front."""

    begin: int
    end: int
    documents: tuple[int, ...]  # those that end here, by their number among the sequences
    branches: tuple["Branch", ...] = ()
    first: int = -1  # the smallest number of a document that ends here or further on; set by `branch`
    size: int = 0  # tokens of this and of all that goes on from it; set by `branch`

    @property
    def length(self) -> int:
        """Its own tokens."""
        return self.end - self.begin


def branch(begin: int, end: int, documents: Sequence[int], branches: Sequence[Branch] = ()) -> Branch:
    """A branch; one that only leads to another becomes one with it."""
    if len(branches) == 1 and not documents:
        [only] = branches
        return Branch(begin, only.end, only.documents, only.branches, only.first, only.size + end - begin)
    first = min([*documents, *(other.first for other in branches)])
    return Branch(begin, end, tuple(documents), tuple(branches), first, end - begin + sum(other.size for other in branches))


def branches_of(root: Branch) -> Iterator[Branch]:
    """A branch and all that go on from it, in depth-first order."""
    todo = [root]
    while todo:
        each = todo.pop()
        yield each
        todo += reversed(each.branches)


def ends_in(root: Branch) -> Iterator[int]:
    """The documents that begin with a branch, those that end in it first."""
    for each in branches_of(root):
        yield from each.documents


def forest(sequences: Sequence[npt.NDArray[np.uint32]], in_front: int = 0) -> list[Branch]:
    """The forest of D sequences of token ids, each of one token or more; roots, and what goes on from a branch, in the order in
    which the sequences are given. `in_front` tokens stand before each sequence, the same for all.

    Equal sequences are one path, at whose end all of them end.
    """
    if not sequences:
        return []
    trie = _trie(sequences, in_front)
    return _built(trie, _kept(trie))


def largest(sequences: Sequence[npt.NDArray[np.uint32]], share: float, most: int) -> list[tuple[int, int, int]]:
    """The beginnings that take at least this share of all tokens by being repeated, most first: (sequences that begin with it, one
    of them, its tokens). Tokens that a longer beginning has in common with a shorter one count for the shorter one."""
    least, found = max(1.0, share * sum(map(len, sequences))), list[tuple[int, int, int, int]]()
    for each in (each for root in forest(sequences) for each in branches_of(root)):
        count = sum(1 for _ in ends_in(each)) if each.branches else len(each.documents)
        if (count - 1) * each.length >= least:
            found.append((-(count - 1) * each.length, each.first, each.end, count))
    return [(count, first, end) for _, first, end, count in sorted(found)[:most]]


def common_lengths(sequences: Sequence[npt.NDArray[np.uint32]]) -> npt.NDArray[np.int64]:
    """How many tokens each sequence begins with in common with the one before it: of D sequences D - 1 numbers."""
    shorter_P = np.array([min(len(one), len(other)) for one, other in pairwise(sequences)], np.int64)
    if not len(shorter_P):
        return shorter_P
    counts = shorter_P.tolist()
    before_N = np.concatenate([sequence[:count] for sequence, count in zip(sequences[:-1], counts, strict=True)])
    after_N = np.concatenate([sequence[:count] for sequence, count in zip(sequences[1:], counts, strict=True)])
    end_P = shorter_P.cumsum()
    differing_M = np.append(np.flatnonzero(before_N != after_N), len(before_N))
    first_P = differing_M[np.searchsorted(differing_M, end_P - shorter_P)]
    return np.minimum(first_P - (end_P - shorter_P), shorter_P)


@dataclass(slots=True)
class _Trie:
    """Every place where sequences part or end. Node 0 is the common nothing; `depth` counts tokens from the first one. Chains may be
    as long as there are sequences, so that nothing here recurs."""

    depth: list[int]
    parent: list[int]
    documents: list[list[int]]  # that end here
    children: list[list[int]]
    order: list[int]  # parents before children
    behind: list[int]  # tokens further on than the node's own


def _trie(sequences: Sequence[npt.NDArray[np.uint32]], in_front: int) -> _Trie:
    written = [sequence.astype(">u4").tobytes() for sequence in sequences]  # big end first: bytes sort as the numbers do
    order_D = sorted(range(len(sequences)), key=written.__getitem__)
    common = [0, *(common_lengths([sequences[d] for d in order_D]) + in_front).tolist()]
    depth, parent, documents, path = [0], [-1], list[list[int]]([[]]), [0]

    def node(at: int, under: int) -> int:
        depth.append(at)
        parent.append(under)
        documents.append([])
        return len(depth) - 1

    for document, shared in zip(order_D, common, strict=True):
        last = -1
        while depth[path[-1]] > shared:
            last = path.pop()
        if depth[path[-1]] < shared:  # the last sequence's path is parted where this one leaves it
            parent[last] = node(shared, path[-1])
            path.append(parent[last])
        whole = len(sequences[document]) + in_front
        if whole > shared:
            path.append(node(whole, path[-1]))
        documents[path[-1]].append(document)
    children: list[list[int]] = [[] for _ in depth]
    for number in range(1, len(depth)):
        children[parent[number]].append(number)
    order, todo = list[int](), [0]
    while todo:
        order.append(todo.pop())
        todo += children[order[-1]]
    behind = [0] * len(depth)
    for number in reversed(order[1:]):
        behind[parent[number]] += behind[number] + depth[number] - depth[parent[number]]
    return _Trie(depth, parent, documents, children, order, behind)


def _kept(trie: _Trie) -> list[int]:
    """For each node the nearest one before it that is kept: itself where it is."""
    kept = [0] * len(trie.depth)
    for number in trie.order[1:]:
        above = kept[trie.parent[number]]
        length = trie.depth[number] - trie.depth[above]
        pays = length >= LEAST and (_ways(trie, number) - 1) * length * WORTH >= trie.behind[number]
        kept[number] = number if pays or not trie.children[number] else above
    return kept


def _ways(trie: _Trie, number: int) -> int:
    """Into how many a node parts within the tokens that are too few for a branch between."""
    ways, todo, near = 0, [number], trie.depth[number] + LEAST
    while todo:
        each = todo.pop()
        ways += bool(trie.documents[each])
        for child in trie.children[each]:
            if trie.depth[child] < near and trie.children[child]:
                todo.append(child)
            else:
                ways += 1
    return ways


def _built(trie: _Trie, kept: list[int]) -> list[Branch]:
    """The roots. What a node that is not kept would have parted into goes on from the nearest one that is."""
    further: list[list[Branch]] = [[] for _ in trie.depth]
    for number in reversed(trie.order[1:]):
        above, documents = kept[trie.parent[number]], trie.documents[number]
        if kept[number] == number or documents:
            going_on = sorted(further[number], key=lambda each: each.first)
            further[above].append(branch(trie.depth[above], trie.depth[number], documents, going_on))
    return sorted(further[0], key=lambda each: each.first)
