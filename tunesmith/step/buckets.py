"""Fixed shapes that rows of many lengths are filled up to, with documents that nobody learns from.

Every document of the padding holds a token at least: not every attention kernel takes an empty one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.corpus.batches import Row

SHARES = (1.0, 0.75, 0.5, 0.25)  # of the longest row: one bucket each
SPARE = 1.25  # rows of later steps may be so much longer than those of the first, and hold so many more documents
MULTIPLE = 64  # of a bucket's tokens, for the products' tiles


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The fixed shape of a recording: tokens, documents, and the most tokens of a document, which attention kernels are launched for."""

    tokens: int
    documents: int
    longest: int

    def padding(self, lengths: Sequence[int]) -> tuple[int, ...] | None:
        """Tokens of each document that fills the bucket up behind these; None where they do not fit in."""
        count, tokens = self.documents - len(lengths), self.tokens - sum(lengths)
        if not all(0 < length <= self.longest for length in lengths) or not count <= tokens <= count * self.longest:
            return None
        return tuple(tokens // count + (i < tokens % count) for i in range(count))

    def layout(self) -> tuple[int, ...]:
        """Documents to record with. The first is the longest that can be, lest a window be left out that a row would need."""
        first = min(self.longest, self.tokens - (self.documents - 1))
        padding = self.padding((first,))
        assert padding is not None, "a bucket has room for what it is padded with"
        return (first, *padding)


def of_rows(rows: Sequence[Row], most: int, longest: int) -> tuple[Bucket, ...]:
    """Buckets for rows like these, the largest first; none where no row could be replayed.

    `most`: tokens that a row may have; `longest`: tokens of the longest document.
    """
    alone = [row for row in rows if not (row.parents or row.behind) and row.lengths]
    if not alone:
        return ()
    density = SPARE * max(len(row.lengths) / sum(row.lengths) for row in alone)
    largest = max(sum(row.lengths) for row in alone)
    top = max(largest, min(most, round(SPARE * largest)))
    longest = max(longest, MULTIPLE)
    return tuple(sorted({_bucket(max(MULTIPLE, round(share * top)), density, longest) for share in SHARES}, reverse=True))


def _bucket(tokens: int, density: float, longest: int) -> Bucket:
    """For rows of up to `tokens`: behind as many documents as are expected, padding has documents enough to fill all of it."""
    expected = max(4, round(density * tokens) + 1)
    documents = expected
    while True:
        total = -(-(tokens + documents) // MULTIPLE) * MULTIPLE
        needed = expected + -(-total // longest)
        if needed <= documents:
            return Bucket(total, documents, min(longest, total))
        documents = needed
