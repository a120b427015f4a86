"""By chunks of queries as all at once; with keys in front as the last queries of a longer document."""

import pytest
import torch

from tunesmith.models import chunked_attention
from tunesmith.models.chunked_attention import along_path, chunked
from tunesmith.models.forest import forest_of


def drawn(heads: int, tokens: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, 8, generator=torch.Generator().manual_seed(heads * 100 + tokens))


@pytest.mark.parametrize("window", [None, 1, 3, 12])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
def test_keys_in_front_are_those_of_a_longer_document(window, softcap, sinks, monkeypatch):
    q, k, v = drawn(4, 20), drawn(2, 20), drawn(2, 20)
    whole = chunked(q, k, v, 0.3, window, softcap, sinks)
    monkeypatch.setattr(chunked_attention, "QUERY_CHUNK", 5)
    torch.testing.assert_close(chunked(q, k, v, 0.3, window, softcap, sinks), whole)
    torch.testing.assert_close(chunked(q[:, :, 7:], k, v, 0.3, window, softcap, sinks), whole[:, :, 7:])


def test_it_is_causal_attention():
    q, k, v = drawn(2, 9), drawn(2, 9), drawn(2, 9)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
    torch.testing.assert_close(chunked(q, k, v, 0.3), expected)
    front = torch.nn.functional.scaled_dot_product_attention(q[:, :, -1:], k, v, scale=0.3)
    torch.testing.assert_close(chunked(q[:, :, -1:], k, v, 0.3), front)


def test_along_a_path_a_segment_sees_what_stands_in_front_and_all_of_its_ancestors():
    """The keys of segments on other branches are not touched: they may be anything."""
    torch.manual_seed(0)
    q, k, v, front = torch.randn(2, 12, 4), torch.randn(2, 12, 4), torch.randn(2, 12, 4), (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    forest = forest_of((4, 3, 2, 3), (-1, 0, 0, 2))
    places = [0, 1, 2, 3, 7, 8, 9, 10, 11]
    keys, values = (torch.cat([part, whole[:, places]], 1) for part, whole in zip(front, (k, v), strict=True))
    expected = chunked(q[None, :, 9:], keys[None], values[None], 0.5, 6)[0].transpose(0, 1)
    k[:, 4:7] = v[:, 4:7] = float("nan")
    torch.testing.assert_close(along_path(q, k, v, forest, 3, [front], 0.5, 6), expected)
    assert along_path(q, k, v, forest, 0, [], 0.5).shape == (4, 2, 4)
