"""Attention behind a prefix against its definition, each document with a copy of the prefix: values and every gradient."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from tunesmith.models import attention_cpu, attention_kernels, prefix_attention
from tunesmith.models.attention import packed_attention
from tunesmith.models.forest import Forest
from tunesmith.models.forest_attention import attend
from tunesmith.models.prefix_attention import Prefix

STARTS = (0, 9, 10, 14, 28)
PREFIX = 5


def attended(q: Any, k: Any, v: Any, prefix_k: Any, prefix_v: Any, starts: Any, scale: float, **arguments: Any) -> Any:
    """[H, T, E] of documents that stand behind one prefix."""
    given = {"window": None, "softcap": None, "sinks_H": None} | arguments
    return attend(q, k, v, Forest(tuple(starts)), [(prefix_k, prefix_v)], scale, **given).transpose(0, 1)


behind_prefix: Any = attended


def leaves(heads: int = 4, kept: int = 2, size: int = 8, dtype: torch.dtype = torch.float32, prefix: int = PREFIX) -> list[Any]:
    """Queries, keys, values as a class hands them over ([T, H, E] in memory), keys and values of the prefix."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, rows, size, generator=generator).to(dtype).transpose(0, 1).requires_grad_()

    tokens = STARTS[-1]
    return [drawn(heads, tokens), drawn(kept, tokens), drawn(kept, tokens), drawn(kept, prefix), drawn(kept, prefix)]


def plain(given, starts, scale, window=None, softcap=None, sinks=None):
    """The definition in fp64, document by document, with a whole matrix of scores."""
    q, k, v, prefix_k, prefix_v = (tensor.double() for tensor in given)
    groups, front, outs = q.shape[0] // k.shape[0], prefix_k.shape[1], []
    for begin, end in pairwise(starts):
        keys = torch.cat([prefix_k, k[:, begin:end]], 1).repeat_interleave(groups, 0)
        values = torch.cat([prefix_v, v[:, begin:end]], 1).repeat_interleave(groups, 0)
        scores = (q[:, begin:end] @ keys.mT) * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        distance = torch.arange(front, front + end - begin)[:, None] - torch.arange(front + end - begin)
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        weights = scores.masked_fill(~seen, -torch.inf).exp()
        rest = 0 if sinks is None else sinks.double().exp().view(-1, 1, 1)
        outs.append((weights / (weights.sum(-1, keepdim=True) + rest)) @ values)
    return torch.cat(outs, 1)


def compare(given: list[Any], tolerance: float, starts=STARTS, **arguments: Any) -> None:
    names = {"sinks_H": "sinks"}
    ours = behind_prefix(*given, starts, 0.3, **arguments)
    theirs = plain(given, starts, 0.3, **{names.get(name, name): value for name, value in arguments.items()})
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    found, wanted = torch.autograd.grad(ours, given, direction.to(ours)), torch.autograd.grad(theirs, given, direction.double())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == given[0].dtype
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm() + 1e-12


@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("prefix", [1, 5, 40])
def test_value_and_gradients_are_those_of_the_definition(heads, kept, prefix):
    compare(leaves(heads, kept, prefix=prefix), 1e-5)


@pytest.mark.parametrize("starts", [(0, 28), (0, 0, 28), (0, 1, 2, 3, 28), (0, 27, 28, 28)], ids=str)
def test_single_tokens_and_empty_documents(starts):
    ours = behind_prefix(*leaves(), starts, 0.3)
    assert ours.shape == (4, 28, 8) and ours.transpose(0, 1).is_contiguous()
    compare(leaves(), 1e-5, starts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3), (torch.float64, 1e-12)])
def test_other_dtypes_within_their_noise(dtype, tolerance):
    compare(leaves(dtype=dtype), tolerance)


def test_the_derivative_is_that_of_finite_differences():
    given = leaves(2, 1, 4, torch.float64, prefix=3)
    given[:3] = [tensor[:, :6].detach().requires_grad_() for tensor in given[:3]]
    assert torch.autograd.gradcheck(lambda *tensors: behind_prefix(*tensors, (0, 2, 3, 6), 0.5), given)


WINDOWED: dict[str, dict[str, Any]] = {
    "a window that cuts every document": {"window": 6},
    "a window that cuts the longest alone": {"window": 16},
    "a window shorter than the prefix": {"window": 3},
    "a window of one": {"window": 1},
    "a window that reaches nothing": {"window": 19},
    "softcap": {"softcap": 1.5},
    "sinks": {"sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "all of them": {"window": 7, "softcap": 1.5, "sinks_H": torch.tensor([0.5, -1.0, 2.0, 0.0])},
}


@pytest.mark.parametrize("arguments", WINDOWED.values(), ids=list(WINDOWED))
def test_windows_softcaps_and_sinks(arguments):
    compare(leaves(), 1e-5, **arguments)


def test_a_window_counts_the_positions_of_the_prefix():
    """With 5 in front and a window of 6, a document's first token sees all of the prefix, its second one less, its sixth nothing."""
    given = leaves()
    out = behind_prefix(*given, STARTS, 0.3, window=6)
    for token, seen in ((0, 5), (1, 4), (4, 1), (5, 0)):
        (gradient,) = torch.autograd.grad(out[:, token].sum(), given[4], retain_graph=True)
        assert (gradient.abs().amax((0, 2)) > 0).tolist() == [False] * (5 - seen) + [True] * seen


def test_a_module_with_a_prefix_attends_to_it():
    q, k, v, prefix_k, prefix_v = (tensor.detach() for tensor in leaves())
    module = torch.nn.Module()
    starts = torch.tensor(STARTS, dtype=torch.int32)
    without, _ = packed_attention(module, q[None], k[None], v[None], None, 0.3, cu_seq_lens_q=starts)
    given = Prefix(0, prefix_k, prefix_v)
    given.attach(module)
    assert prefix_attention.attached(module) is given and not module.state_dict() and not list(module.children())
    out, weights = packed_attention(module, q[None], k[None], v[None], None, 0.3, cu_seq_lens_q=starts)
    assert weights is None and out.shape == (1, 28, 4, 8) and out.is_contiguous()
    torch.testing.assert_close(out[0].transpose(0, 1), behind_prefix(q, k, v, prefix_k, prefix_v, STARTS, 0.3))
    assert (out - without).abs().max() > 0.1
    given.detach(module)
    again, _ = packed_attention(module, q[None], k[None], v[None], None, 0.3, cu_seq_lens_q=starts)
    assert torch.equal(again, without) and prefix_attention.attached(module) is None


def test_the_prefix_is_not_copied_for_each_document(monkeypatch):
    """One product over the prefix for the whole row, however many documents there are."""
    sizes, full = [], attention_cpu.full

    def counting(q: Any, k: Any, *others: Any) -> Any:
        sizes.append((q.shape[1], k.shape[1]))
        return full(q, k, *others)

    monkeypatch.setattr(attention_kernels, "CPU", replace(attention_kernels.CPU, full=counting))
    behind_prefix(*leaves(), STARTS, 0.3)
    assert sizes == [(28, PREFIX)]
