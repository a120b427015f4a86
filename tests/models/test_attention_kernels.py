"""Which kernels are taken: right ones, in the table's order, and what is said where it is not the first."""

# mypy: disable-error-code="func-returns-value"

from typing import Any

import torch

from tests.cards import CARD, backward, forward
from tunesmith.models import attention_cuda, attention_kernels
from tunesmith.models.attention_kernels import CPU, agrees, chosen, note, of_candidate
from tunesmith.models.merged_attention import Kernels


def test_the_check_of_kernels_takes_right_ones_and_refuses_wrong_ones():
    where = (torch.device("cpu"), torch.bfloat16, 4, 2, 16)
    assert agrees(CPU, *where)
    assert agrees(of_candidate(CARD), *where)

    def refused(**changes: Any) -> bool:
        kernels = of_candidate(CARD)
        functions = {name: changes.get(name, getattr(kernels, name)) for name in ("causal", "causal_backward", "full", "full_backward")}
        return not agrees(Kernels("wrong", **functions, together=True, windows=True), *where)

    kernels = of_candidate(CARD)

    def other_lse(*given):
        out, lse = kernels.full(*given)
        return out, lse * 1.1

    def no_window(*given):
        return kernels.causal(*given[:-1], None)

    def no_gradient(*given):
        return tuple(part * 0.9 for part in kernels.causal_backward(*given))

    def missing(*given):
        raise NotImplementedError("no such kernel")

    assert refused(full=other_lse) and refused(causal=no_window) and refused(causal_backward=no_gradient) and refused(causal=missing)


def test_the_next_candidate_is_taken_and_said(monkeypatch):
    """With a card's table and its checks replaced: the order, the capability asked for, the sentences."""
    first, second = (
        attention_cuda.Candidate(name, forward, backward, False, least, 8) for name, least in (("one", (9, 0)), ("two", (8, 0)))
    )
    monkeypatch.setattr(attention_cuda, "CANDIDATES", (first, second))
    where: Any = (torch.device("cuda"), torch.bfloat16, 4, 2, 16)

    def told(capability, *right):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(attention_kernels, "agrees", lambda kernels, *others: kernels.name in right)
        chosen.cache_clear()
        kernels = chosen(*where)
        return kernels and kernels.name, note(*where)

    assert told((9, 0), "one", "two") == ("one", "")
    assert told((8, 6), "one", "two") == ("two", "")
    name, said = told((9, 0), "two")
    assert (
        name == "two" and said == "one does not compute attention of 4 heads of size 16 in bfloat16 as the definition has it: two is used"
    )
    name, said = told((9, 0))
    assert name is None and "documents are computed one by one" in said
    chosen.cache_clear()
    assert chosen(torch.device("cuda"), torch.float32, 4, 2, 16) is None
    assert note(torch.device("cpu"), torch.float32, 4, 2, 16) == ""


def test_the_check_saves_nothing_that_a_checkpoint_would_count():
    """It may be asked for in the middle of a block that is to be computed again, where it is not asked for the second time."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
        assert agrees(CPU, torch.device("cpu"), torch.bfloat16, 2, 1, 8)
    assert kept == []
