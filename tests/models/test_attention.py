"""Attention per document against the plain definition: a T×T matrix of scores, masked."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from tunesmith.models import chunked_attention
from tunesmith.models.attention import NAME, UnknownArgument, packed_attention
from tunesmith.models.forest import forest_of
from tunesmith.models.forest_attention import attend
from tunesmith.models.prefix_attention import Prefix

LENGTHS = (9, 1, 4, 14)
TOKENS = sum(LENGTHS)
MODULE = torch.nn.Module()


def made(heads=4, kept=2, tokens=TOKENS, size=8, dtype=torch.float32):
    torch.manual_seed(0)
    q = torch.randn(1, heads, tokens, size, dtype=dtype)
    return q, torch.randn(1, kept, tokens, size, dtype=dtype), torch.randn(1, kept, tokens, size, dtype=dtype)


def starts(lengths=LENGTHS):
    return torch.tensor([0, *lengths]).cumsum(0).int()


def plain(q_BHTE, k_BKTE, v_BKTE, lengths, scale, window=None, softcap=None, sinks_H=None):
    groups = q_BHTE.shape[1] // k_BKTE.shape[1]
    k_BHTE, v_BHTE = k_BKTE.repeat_interleave(groups, 1), v_BKTE.repeat_interleave(groups, 1)
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at_T = torch.arange(len(document_T))
    distance_TT = at_T[:, None] - at_T
    seen_TT = (document_T[:, None] == document_T) & (distance_TT >= 0)
    if window is not None:
        seen_TT &= distance_TT < window
    scores = (q_BHTE.double() @ k_BHTE.double().mT) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    weights = scores.masked_fill(~seen_TT, -torch.inf).exp()
    rest = 0 if sinks_H is None else sinks_H.double().exp().view(1, -1, 1, 1)
    return ((weights / (weights.sum(-1, keepdim=True) + rest)) @ v_BHTE.double()).transpose(1, 2)


CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "scaled": {"scaling": 0.3},
    "window": {"sliding_window": 3},
    "window of one": {"sliding_window": 1},
    "window longer than any document": {"sliding_window": 100},
    "softcap": {"softcap": 1.5},
    "window and softcap": {"sliding_window": 5, "softcap": 1.5},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all of them": {"sliding_window": 3, "softcap": 1.5, "s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0]), "scaling": 0.3},
}


def definition(arguments):
    """The same arguments under the names of `plain`."""
    names = {"scaling": "scale", "sliding_window": "window", "s_aux": "sinks_H", "softcap": "softcap"}
    return {"scale": 8**-0.5} | {names[name]: value for name, value in arguments.items()}


@pytest.mark.parametrize("kept", [1, 2, 4])
@pytest.mark.parametrize("chunk", [4, 256])
@pytest.mark.parametrize("case", CASES)
def test_every_document_attends_to_itself_alone(case, chunk, kept, monkeypatch):
    monkeypatch.setattr(chunked_attention, "QUERY_CHUNK", chunk)
    q, k, v = made(kept=kept)
    arguments = CASES[case]
    out, weights = packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), **arguments)
    expected = plain(q, k, v, LENGTHS, **definition(arguments))
    assert weights is None and out.shape == (1, sum(LENGTHS), 4, 8) and out.is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_definition(case, monkeypatch):
    monkeypatch.setattr(chunked_attention, "QUERY_CHUNK", 4)
    arguments = dict(CASES[case])
    leaves: list[Any] = [tensor.requires_grad_() for tensor in made()]
    if "s_aux" in arguments:
        leaves.append(arguments["s_aux"].clone().requires_grad_())
        arguments["s_aux"] = leaves[-1]
    q, k, v = leaves[:3]
    out, _ = packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), **arguments)
    expected = plain(q, k, v, LENGTHS, **definition(arguments))
    direction = torch.randn(out.shape)
    ours = torch.autograd.grad(out, leaves, direction)
    theirs = torch.autograd.grad(expected, leaves, direction.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_empty_document_takes_no_room():
    q, k, v = made()
    with_empty = torch.tensor([0, 9, 9, 10, 14, 28, 28], dtype=torch.int32)
    out, _ = packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=with_empty)
    assert torch.equal(out, packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts())[0])


def test_no_score_is_made_beyond_the_window(monkeypatch):
    """Memory is chunk × (window + chunk)."""
    monkeypatch.setattr(chunked_attention, "QUERY_CHUNK", 8)
    q, k, v = made(tokens=64)
    sizes, softmax = [], torch.Tensor.softmax

    def counting(scores, dim):
        sizes.append(tuple(scores.shape[-2:]))
        return softmax(scores, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", counting)
    packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts((64,)), sliding_window=5)
    assert sizes[0] == (8, 8) and set(sizes[1:]) == {(8, 12)}


def test_scores_are_fp32_over_bf16():
    q, k, v = made(dtype=torch.bfloat16)
    out, _ = packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), softcap=1.5)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), plain(q, k, v, LENGTHS, 8**-0.5, softcap=1.5), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_bias": torch.ones(1), "head_mask": torch.ones(1)}, "attention asks for attention_bias, head_mask"),
        ({"dropout": 0.1}, "attention asks for dropout"),
        ({"is_causal": False}, "attention is not causal"),
        ({"attention_mask": torch.ones(1)}, "attention asks for a mask of its own"),
        ({"cu_seq_lens_q": None}, "does not hand document starts down"),
    ],
)
def test_what_is_not_served_is_an_error(arguments, message):
    q, k, v = made()
    given: dict[str, Any] = {"attention_mask": None, "cu_seq_lens_q": starts()} | arguments
    with pytest.raises(UnknownArgument, match=message):
        packed_attention(MODULE, q, k, v, **given)


def test_a_module_that_is_not_causal_and_a_cache_are_errors():
    q, k, v = made()
    encoder: Any = torch.nn.Module()
    encoder.is_causal = False
    with pytest.raises(UnknownArgument, match="not causal"):
        packed_attention(encoder, q, k, v, None, cu_seq_lens_q=starts())
    with pytest.raises(UnknownArgument, match="not as many"):
        packed_attention(MODULE, q[:, :, -1:], k, v, None, cu_seq_lens_q=starts())


def test_unknown_arguments_that_are_none_and_harmless_ones_pass():
    q, k, v = made()
    packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), attention_bias=None, position_ids=torch.zeros(1), use_cache=False)


def test_transformers_knows_it_by_name():
    assert AttentionInterface()[NAME] is packed_attention


def test_a_forest_says_what_is_shared_and_keeps_keys_and_values():
    q, k, v = made()
    forest = forest_of(LENGTHS, (-1, 0, 0, -1))
    forest.kept = {}
    out, _ = packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), forest=forest)
    torch.testing.assert_close(out[0], attend(q[0], k[0], v[0], forest_of(LENGTHS, (-1, 0, 0, -1)), [], 8**-0.5))
    assert (out - packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts())[0]).abs().max() > 0.1
    [(module, (keys, values))] = forest.kept.items()
    assert module is MODULE and torch.equal(keys, k[0]) and torch.equal(values, v[0])
    with pytest.raises(UnknownArgument, match="one module for its attention twice"):
        packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=starts(), forest=forest)


def test_what_rows_in_front_have_kept_stands_behind_a_prefix_and_before_the_row():
    q, k, v = made()
    _, k2, v2 = (part[0, :, :6] * 0.5 for part in made())
    prefix = Prefix(0, k[0, :, :3], v[0, :, :3])
    module = torch.nn.Module()
    prefix.attach(module)
    forest = forest_of(LENGTHS)
    forest.carried = ({module: (k2, v2)},)
    out, _ = packed_attention(module, q, k, v, None, cu_seq_lens_q=starts(), forest=forest, sliding_window=8)
    fronts = [(prefix.keys_KPE, prefix.values_KPE), (k2, v2)]
    torch.testing.assert_close(out[0], attend(q[0], k[0], v[0], forest_of(LENGTHS), fronts, 8**-0.5, window=8))


def test_a_class_that_changes_where_documents_begin_is_an_error():
    q, k, v = made()
    with pytest.raises(UnknownArgument, match="changed where documents begin"):
        packed_attention(MODULE, q, k, v, None, cu_seq_lens_q=torch.tensor([0, TOKENS]), forest=forest_of(LENGTHS))
