"""A card's kernels, without one: called with shapes that they take, as torch's own rules for tensors without values have it.
Whether their values are right is asked on the card itself (`forest_attention.agrees`)."""

# mypy: disable-error-code="attr-defined"

import inspect
from typing import Any

import pytest
import torch

from tunesmith.models import attention_cuda
from tunesmith.models.attention_cuda import CANDIDATES, causal, causal_backward, full, full_backward, offsets_of
from tunesmith.models.forest import forest_of

FLASH = next(candidate for candidate in CANDIDATES if candidate.name == "flash")
META = torch.device("meta")


def shaped(rows: int, tokens: int) -> Any:
    return torch.empty(tokens, rows, 16, dtype=torch.bfloat16, device=META).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 5])
def test_flash_takes_all_segments_in_one_call(window):
    q, k, v = shaped(4, 28), shaped(2, 28), shaped(2, 28)
    forest = forest_of((9, 1, 0, 4, 14))
    out, lse = causal(FLASH, q, k, v, forest, 0.3, window)
    assert (out.shape, lse.shape, lse.dtype) == ((28, 4, 16), (4, 28), torch.float32)
    gradients = causal_backward(FLASH, out, q, k, v, out, lse, forest, 0.3, window)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]


def test_flash_takes_stretches_of_unequal_queries_and_keys():
    q, k, v, at = shaped(4, 28), shaped(2, 7), shaped(2, 7), offsets_of([0, 20, 28], [0, 4, 7], META)
    out, lse = full(FLASH, q, k, v, at, 0.3)
    assert (out.shape, lse.shape) == ((28, 4, 16), (4, 28))
    gradients = full_backward(FLASH, out, q, k, v, out, lse, at, 0.3)
    assert [gradient.shape for gradient in gradients] == [q.shape, k.shape, v.shape]


def test_offsets_of_a_row_are_made_once_and_leave_empty_segments_out():
    forest = forest_of((9, 0, 4))
    at = attention_cuda._segments(forest, torch.device("cpu"))
    assert at is attention_cuda._segments(forest, torch.device("cpu"))
    assert at.queries.tolist() == at.keys.tolist() == [0, 9, 13] and at.queries.dtype == torch.int32
    assert (at.longest_queries, at.longest_keys) == (9, 9)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_calls_fit_the_operators_schemas(candidate, monkeypatch):
    """Every positional and named argument against the schema that this version of torch has."""
    seen = []

    class Recording:
        def __getattr__(self, name: str) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                arguments = getattr(torch.ops.aten, name).default._schema.arguments
                bound = dict(zip([a.name for a in arguments if not a.kwarg_only], given, strict=False)) | named
                assert len(given) <= sum(not a.kwarg_only for a in arguments) and set(bound) <= {a.name for a in arguments}
                assert all(a.has_default_value() or a.name in bound for a in arguments), name
                for argument in arguments:
                    if argument.name in bound and str(argument.type) == "Tensor" and argument.name != "attn_bias":
                        assert isinstance(bound[argument.name], torch.Tensor), (name, argument.name)
                seen.append((name, bound))
                q = bound["query"]
                rows = [q, bound["key"], bound["value"]]
                return rows if "backward" in name else (q, q.new_empty(q.shape[0], q.shape[1], 1) if "cudnn" in name else q[..., 0].t())

            return call

    monkeypatch.setattr(attention_cuda, "_aten", Recording())
    q, k, v = (torch.zeros(rows, 13, 16) for rows in (4, 2, 2))
    forest = forest_of((9, 4))
    out, lse = causal(candidate, q, k, v, forest, 0.3, None)
    assert out.shape == (13, 4, 16) and lse.shape == (4, 13)
    causal_backward(candidate, out, q, k, v, out, lse, forest, 0.3, None)
    (_, there), (_, back) = seen
    offsets = {name: value for name, value in there.items() if name.startswith("cum_seq")}
    assert [value.tolist() for value in offsets.values()] == [[0, 9, 13]] * 2
    assert there["is_causal"] is True and there["scale"] == 0.3 and there["max_q"] == 9 == back["max_k"] and back["is_causal"] is True


def test_the_candidates_functions_have_one_shape():
    for candidate in CANDIDATES:
        assert len(inspect.signature(candidate.forward).parameters) == 7 and len(inspect.signature(candidate.backward).parameters) == 10


@pytest.mark.parametrize("before", [(False, False), (True, True)])
def test_backward_kernels_are_told_to_sum_in_one_order_and_nobody_else_is(before, monkeypatch):
    seen, (mode, warn_only) = [], before
    q, k, v = (torch.zeros(rows, 13, 16) for rows in (4, 2, 2))

    def backward(gradient, q, k, v, *others):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()))
        raise RuntimeError("no such order")

    candidate = attention_cuda.Candidate("a card", FLASH.forward, backward, True, (0, 0), 1)
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    try:
        with pytest.raises(RuntimeError, match="no such order"):
            causal_backward(candidate, q.transpose(0, 1), q, k, v, q.transpose(0, 1), q[..., 0], forest_of((9, 4)), 0.3, None)
        after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(True, False)] and after == before and torch.utils.deterministic.fill_uninitialized_memory
