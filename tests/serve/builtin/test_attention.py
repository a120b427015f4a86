"""The attention of a step against the definition, token by token, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith.models.attention import UnknownArgument
from tunesmith.models.attention_layers import AttentionLayer
from tunesmith.serve.builtin import attention
from tunesmith.serve.builtin.cache import Cache, Room

HEADS, KEPT, SIZE = 6, 2, 8
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 9},
    "softcap": {"softcap": 2.0},
    "sinks": {"s_aux": torch.linspace(-1, 2, HEADS)},
    "all": {"sliding_window": 5, "softcap": 2.0, "s_aux": torch.linspace(-1, 2, HEADS), "scaling": 0.3},
}


class Module(torch.nn.Module):
    is_causal = True


def truth(q_HE: Tensor, k_KSE: Tensor, v_KSE: Tensor, kind: dict[str, Any]) -> Tensor:
    """One query behind all of its keys: [H, E]."""
    groups = HEADS // KEPT
    out = []
    for head in range(HEADS):
        scores_S = (k_KSE[head // groups] @ q_HE[head]) * kind.get("scaling", SIZE**-0.5)
        if cap := kind.get("softcap"):
            scores_S = torch.tanh(scores_S / cap) * cap
        if window := kind.get("sliding_window"):
            scores_S[: max(0, len(scores_S) - window)] = float("-inf")
        if (sinks_H := kind.get("s_aux")) is not None:
            scores_S = torch.cat([scores_S, sinks_H[head : head + 1]])
        out.append(scores_S.softmax(-1)[: k_KSE.shape[1]] @ v_KSE[head // groups])
    return torch.stack(out)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_sees_what_is_cached_of_its_answer(kind: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers with a next token, in two slabs, holes between them, and two stretches: one new, one behind what is cached."""
    monkeypatch.setattr(attention, "fuses", lambda *_: fused)
    cache = Cache([AttentionLayer("", 0, KEPT, SIZE)], torch.float32, torch.device("cpu"), 8192, 512, 8)
    torch.manual_seed(0)
    past, new = [20, 63, 1, 70, 0, 11], [1, 1, None, 1, 13, 17]
    rooms: list[Room] = []
    for length in past:
        room = cache.take(length + 20)
        assert room is not None
        room.length = length
        for whole in (room.slab.keys[0], room.slab.values[0]):
            whole[room.row, :, :length] = torch.randn(KEPT, length, SIZE)
        rooms.append(room)
    spans, start = [], 0
    for number in (4, 1, 0, 5, 3):  # by adapter, say
        count = new[number]
        assert count is not None
        spans.append((number, start, start + count))
        start += count
    q, k, v = (torch.randn(1, heads, start, SIZE) for heads in (HEADS, KEPT, KEPT))
    before = [(room.slab.keys[0][room.row].clone(), room.slab.values[0][room.row].clone()) for room in rooms]
    module = Module()
    step = attention.step_of({module: 0}, [(rooms[number], begin, end) for number, begin, end in spans], torch.device("cpu"))
    assert len(step.singles) == 2 and len(step.stretches) == 2
    found = attention.serving_attention(module, q, k, v, None, serving=step, **KINDS[kind])[0][0]
    for number, begin, end in spans:
        kept, fresh = before[number], (k[0, :, begin:end], v[0, :, begin:end])
        keys, values = (torch.cat([part[:, : past[number]], each], 1) for part, each in zip(kept, fresh, strict=True))
        room = rooms[number]
        assert torch.equal(room.slab.keys[0][room.row, :, : past[number] + end - begin], keys)
        for at in range(begin, end):
            seen = past[number] + at - begin + 1
            wanted = truth(q[0, :, at], keys[:, :seen], values[:, :seen], KINDS[kind])
            torch.testing.assert_close(found[at], wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(rooms[2].slab.keys[0][rooms[2].row], before[2][0])  # whoever is not in the step is left alone
    assert all(room.length == length for room, length in zip(rooms, past, strict=True))


def test_what_would_change_the_result_is_refused() -> None:
    q = torch.zeros(1, 2, 3, 4)
    step = attention.Step({}, [], [])
    for given in ({"dropout": 0.1}, {"serving": None}, {"bias_of_positions": q}, {"attention_mask": q}, {"is_causal": False}):
        arguments: dict[str, Any] = {"attention_mask": None, "serving": step, **given}
        with pytest.raises(UnknownArgument):
            attention.serving_attention(Module(), q, q, q, **arguments)
    with pytest.raises(UnknownArgument, match="as many"):
        attention.serving_attention(Module(), q, q[:, :, :2], q[:, :, :2], None, serving=step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_agree_with_the_definition_here(dtype: torch.dtype) -> None:
    """What a GPU is asked at the start, asked of this processor."""
    assert attention._agrees(torch.device("cpu"), dtype, 6, 2, 16)


def test_kernels_that_differ_are_not_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    by_kernel = attention.by_kernel
    monkeypatch.setattr(attention, "by_kernel", lambda *given: by_kernel(*given) * 1.1)
    with pytest.warns(RuntimeWarning, match="other values"):
        assert not attention._agrees(torch.device("cpu"), torch.float32, 3, 1, 24)
