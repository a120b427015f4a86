"""What goes into which row: best fit, and beginnings that more documents share than a row holds."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.corpus.sharing import Branch, branch

HEAD = 16  # a beginning of one such part of a row, or more, is not repeated: repeated it would take that share of every row


@dataclass(frozen=True, slots=True)
class Piece:
    """What a row is made of: whole branches; or one branch alone, and the rows behind it that hold what goes on from it."""

    roots: tuple[Branch, ...]
    behind: tuple["Piece", ...] = ()


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: each length into the fullest row that still holds it. A length beyond the capacity stands alone."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted: the first that is large enough is the fullest that still holds it
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], 0))
        if at < len(room):
            left, row = room.pop(at)
            rows[row].append(i)
        else:
            left, row = capacity, len(rows)
            rows.append([i])
        insort(room, (left - lengths[i], row))
    return rows


def pack(roots: Sequence[Branch], capacity: int) -> list[Piece]:
    """Rows of at most `capacity` computed tokens each, but for a branch that is longer by itself.

    A tree that does not fit is cut where it parts: short beginnings are repeated in each row that they lead into; a long one is
    a row of its own, computed once, with the others behind it. The trees in front of a row, taken together, are never longer
    than a document.
    """
    whole, heads = list[Branch](), list[Piece]()
    todo = list(reversed(roots))
    while todo:
        root = todo.pop()
        if root.size <= capacity or not root.branches:
            whole.append(root)
        elif root.length * HEAD >= capacity:
            heads.append(Piece((root,), tuple(pack(root.branches, capacity))))
        else:
            room = capacity - root.length
            todo += [branch(root.begin, root.end, (), [each]) for each in reversed(root.branches) if each.size > room]
            whole += _repeated(root, [each for each in root.branches if each.size <= room], room)
    return heads + [Piece(tuple(whole[i] for i in group)) for group in best_fit([root.size for root in whole], capacity)]


def _repeated(root: Branch, branches: list[Branch], room: int) -> list[Branch]:
    """A beginning in front of as many of its branches as fit behind it, as often as it takes; documents that end with it once."""
    groups = best_fit([each.size for each in branches], room) or ([[]] if root.documents else [])
    ending = [root.documents] + [()] * (len(groups) - 1)
    return [branch(root.begin, root.end, ends, [branches[i] for i in group]) for group, ends in zip(groups, ending, strict=False)]
