from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.corpus.batches import Row
from tunesmith.step import buckets
from tunesmith.step.buckets import Bucket


def row(*lengths: int, **others: Any) -> Row:
    empty = torch.zeros(0, dtype=torch.int64)
    return Row(torch.zeros(sum(lengths), dtype=torch.int64), lengths, (), empty, empty, sum(lengths), sum(lengths), **others)


def test_padding_fills_the_bucket_with_documents_of_a_token_at_least() -> None:
    bucket = Bucket(tokens=64, documents=6, longest=20)
    assert bucket.padding((20, 10)) == (9, 9, 8, 8)
    assert bucket.padding((20, 20, 15, 5, 3)) == (1,)
    assert bucket.padding((20, 20, 15, 5, 3, 1)) == ()


@pytest.mark.parametrize(
    "lengths", [(21,), (20, 20, 15, 8), (20, 20, 20, 4), (20, 20, 20, 20), (1, 1, 1, 1, 1), (20, 0, 20), (9, 9, 9, 9, 9, 9, 9)]
)
def test_what_does_not_fit_has_no_padding(lengths: tuple[int, ...]) -> None:
    assert Bucket(tokens=64, documents=6, longest=20).padding(lengths) is None


def test_no_document_of_a_row_is_longer_than_the_first_that_is_recorded() -> None:
    assert Bucket(64, 6, 20).layout()[0] == 20
    assert Bucket(64, 6, 64).layout() == (59, 1, 1, 1, 1, 1)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(0, 2000))
def test_every_row_like_those_seen_fits_its_bucket(lengths: list[int], more: int) -> None:
    made = buckets.of_rows([row(*lengths)], sum(lengths) + more, 300)
    assert 1 <= len(made) <= len(buckets.SHARES) and list(made) == sorted(made, reverse=True)
    assert made[0].padding(lengths) is not None
    for bucket in made:
        assert bucket.tokens % buckets.MULTIPLE == 0 and sum(bucket.layout()) == bucket.tokens and len(bucket.layout()) == bucket.documents
    part = lengths[: max(1, len(lengths) // 3)]
    assert any(bucket.padding(part) is not None for bucket in made), "the last row of a step is shorter"


def test_padding_of_usual_rows_is_some_percent() -> None:
    top = buckets.of_rows([row(*[200] * 40)], 8192, 512)[0]
    assert 8192 < top.tokens < 8192 * 1.02


def test_rows_that_share_have_no_bucket() -> None:
    assert buckets.of_rows([row(4, 3, 3, parents=(-1, 0, 0)), row(4, behind=(row(3),))], 64, 10) == ()
