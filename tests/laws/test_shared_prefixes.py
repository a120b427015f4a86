"""Law: every method x every kind of attention gives, on rows in which documents share what they begin with (nested in a row, ahead
of it, ahead of one that is itself behind another), the loss and the gradients that it gives on the same documents alone."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import VOCABULARY, some_ids, tiny
from tunesmith.data.corpus.batches import Row
from tunesmith.methods import method
from tunesmith.methods.method import METHODS
from tunesmith.methods.settings import Adapter, DoRA, Freeze, Full, LoRA, PiSSA, Prefix, Prompt, PTuning, PTuningV2
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots
from tunesmith.models.nf4 import Nf4Linear, quantize
from tunesmith.models.proof import Proof
from tunesmith.models.score import Score
from tunesmith.step.forward import Forward, prepare
from tunesmith.step.recompute import recompute_blocks

TRUSTED = Proof(True, True, (), True, True)
SETTINGS: dict[str, Any] = {
    "full": Full(),
    "freeze": Freeze(layers=1, head=True),
    "lora": LoRA(rank=4),
    "dora": DoRA(rank=4),
    "pissa": PiSSA(rank=4, niter="exact"),
    "prompt": Prompt(tokens=5, init="vocabulary"),
    "ptuning": PTuning(tokens=5, hidden=16),
    "prefix": Prefix(tokens=5, hidden=16, init="random"),
    "ptuning_v2": PTuningV2(tokens=5, init="random"),
    "adapter": Adapter(reduction=4.0),
}
KINDS = ["qwen3", "gemma3", "gemma2", "gpt_oss", "mixtral"]  # norms of heads, windows, soft-caps, sinks, experts; llama is in all
EVERYWHERE = ["full", "lora", "prefix", "prompt"]
CASES = [("llama", name) for name in METHODS] + [(kind, name) for kind in KINDS for name in EVERYWHERE]


def made(ids: torch.Tensor, lengths: tuple[int, ...], parents: tuple[int, ...] = (), behind: tuple[Row, ...] = (), seed: int = 0) -> Row:
    """A row in which about a third of the positions learn, one of them twice."""
    generator = torch.Generator().manual_seed(seed + len(ids))
    hidden_N = torch.randperm(len(ids), generator=generator)[: len(ids) // 3 + 1].sort().values
    hidden_N = torch.cat([hidden_N, hidden_N[-1:]])
    targets_N = torch.randint(3, VOCABULARY, hidden_N.shape, generator=generator)
    return Row(ids, lengths, (), hidden_N, targets_N, len(ids), len(ids), parents, behind)


def shared_rows(virtual: range) -> list[Row]:
    """A forest in a row; and a beginning ahead of a forest, and of a second one, ahead of two rows."""
    front, ids = torch.tensor(list(virtual), dtype=torch.int64), some_ids(200, 5)
    first = made(torch.cat([front, ids[:40], front, ids[40:60]]), (len(front) + 10, 7, 12, 11, len(front) + 14, 6), (-1, 0, 1, 0, -1, 4))
    forest = made(ids[60:100], (20, 3, 9, 8), (-1, 0, 1, -1), seed=1)
    last = (made(ids[100:108], (3, 5)), made(ids[110:116], (6,)))
    second = made(ids[120:125], (5,), behind=last)
    head = made(torch.cat([front, ids[130:141]]), (len(front) + 11,), behind=(forest, second))
    return [first, head]


def alone(row: Row, before: torch.Tensor | None = None) -> Iterator[Row]:
    """A row for each segment, with all that stands before it, in which the segment's own positions learn."""
    before = row.ids_T[:0] if before is None else before
    own = row.ids_T.split(row.lengths)
    starts = [sum(row.lengths[:segment]) for segment in range(len(own))]
    for segment, ids in enumerate(own):
        path, at = [], segment
        while row.parents and (at := row.parents[at]) >= 0:
            path.append(own[at])
        ids_T = torch.cat([before, *path[::-1], ids])
        here = (row.hidden_N >= starts[segment]) & (row.hidden_N < starts[segment] + len(ids))
        moved_N = row.hidden_N[here] - starts[segment] + len(ids_T) - len(ids)
        yield Row(ids_T, (len(ids_T),), (), moved_N, row.targets_N[here], len(ids_T), len(ids_T))
    for other in row.behind:
        yield from alone(other, torch.cat([before, row.ids_T]))


def tuned(kind: str, settings: Any, quantized: bool = False) -> tuple[Any, Tuning]:
    model: Any = tiny(kind)
    tuning = method.build(model, settings, quantized=quantized)
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight.detach().float()), settings)
    method.settle(model, tuning, lambda path: model.get_submodule(path).weight.detach().float())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    method.place(model, tuning)
    return model, tuning


def learned(forward: Forward, tuning: Tuning, rows: list[Row], scale: float = 0.1) -> tuple[float, dict[str, torch.Tensor]]:
    for parameter in tuning.parameters.values():
        parameter.grad = None
    loss = sum(forward.learn(row, scale).item() for row in rows)
    return loss, {name: parameter.grad.clone() for name, parameter in tuning.parameters.items() if parameter.grad is not None}


def compare(forward: Forward, tuning: Tuning, rows: list[Row], tolerance: float = 1e-5) -> None:
    documents = [document for row in rows for document in alone(row)]
    assert sum(len(row.ids_T) for row in documents) > 2 * sum(len(row.ids_T) for row in rows)
    wanted_loss, wanted = learned(forward, tuning, documents)
    loss, found = learned(forward, tuning, rows)
    assert loss == pytest.approx(wanted_loss, rel=tolerance)
    assert found.keys() == wanted.keys() and found
    largest = max(gradient.norm().item() for gradient in wanted.values())
    for name, gradient in wanted.items():  # what is all but zero (an expert's that nobody asks) is of the size of the others' rounding
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm() + 0.1 * tolerance * largest, name
    mean, count = forward.mean_loss(rows)
    assert count == sum(len(row.targets_N) for row in documents)
    assert mean == pytest.approx(forward.mean_loss(documents)[0], rel=tolerance)
    whole = sum(forward.loss(row, 0.1).item() for row in rows)
    assert whole == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_law(kind: str, name: str) -> None:
    model, tuning = tuned(kind, SETTINGS[name])
    compare(prepare(model, TRUSTED, "sdpa"), tuning, shared_rows(slots.virtual_ids(model)))


@pytest.mark.parametrize("name", ["lora", "full", "prefix", "prompt", "ptuning"])
def test_blocks_that_are_computed_again(name: str) -> None:
    model, tuning = tuned("gemma3", SETTINGS[name] if name != "prefix" else Prefix(tokens=5, hidden=16, encoder="lstm", init="random"))
    forward, rows = prepare(model, TRUSTED, "sdpa"), shared_rows(slots.virtual_ids(model))
    loss, plain = learned(forward, tuning, rows)
    recompute_blocks(model)
    again, found = learned(forward, tuning, rows)
    assert again == loss and all(torch.equal(found[key], value) for key, value in plain.items())
    compare(forward, tuning, rows)


def test_over_nf4() -> None:
    model, tuning = tuned("llama", SETTINGS["lora"])
    slots.lift(model, tuning.adapter)
    for path in tuning.adapter:
        parent, _, own = path.rpartition(".")
        linear: Any = model.get_submodule(path)
        setattr(model.get_submodule(parent), own, as_nf4(linear))
    method.place(model, tuning)
    compare(prepare(model, TRUSTED, "sdpa"), tuning, shared_rows(range(0)))


def as_nf4(linear: nn.Linear) -> nn.Module:
    """The same layer in 4 bits."""
    made = Nf4Linear(linear.in_features, linear.out_features, False, True, torch.float32)
    made.exchange(quantize(linear.weight.detach(), True))
    return made


@pytest.mark.parametrize("task", ["classify", "tag"])
@pytest.mark.parametrize("name", ["lora", "ptuning_v2"])
def test_labels_in_place_of_words(name: str, task: str) -> None:
    model, tuning = tuned("llama", SETTINGS[name])
    slots.lift(model, tuning.adapter)
    head = Score(task, ["a", "b", "c"], 64)
    method.give_head(model, tuning, head)
    head.begin(0)
    head.class_weights_L = torch.tensor([1.0, 2.0, 0.5])
    method.place(model, tuning)

    def labelled(row: Row) -> Row:
        return replace(row, targets_N=row.targets_N % 3, behind=tuple(labelled(other) for other in row.behind))

    compare(prepare(model, TRUSTED, "sdpa", head), tuning, [labelled(row) for row in shared_rows(range(0))])


@pytest.mark.parametrize("own_head", [True, False])
def test_with_the_classs_own_head(own_head: bool) -> None:
    model, tuning = tuned("gemma2", SETTINGS["lora"])
    compare(prepare(model, replace(TRUSTED, own_head=own_head), "sdpa"), tuning, shared_rows(range(0)))


def test_bf16_within_its_noise() -> None:
    model, tuning = tuned("llama", SETTINGS["lora"])
    model.to(torch.bfloat16)
    compare(prepare(model, TRUSTED, "sdpa"), tuning, shared_rows(range(0)), 4e-2)


def test_a_trained_heads_gradient_is_added_up_over_the_rows_behind() -> None:
    model, _ = tuned("llama", SETTINGS["freeze"])
    forward = prepare(model, TRUSTED, "sdpa")
    rows = shared_rows(range(0))
    assert forward.head is not None
    sums = [torch.zeros(forward.head.weight_VC.shape) for _ in range(2)]
    for total, many in zip(sums, (rows, [document for row in rows for document in alone(row)]), strict=True):
        for row in many:
            forward.learn(row, 0.1, total)
    assert sums[0].norm() > 0 and (sums[0] - sums[1]).norm() <= 1e-5 * sums[1].norm()


def test_gradients_are_gathered_after_each_backward_pass() -> None:
    """Gradients of bf16 tensors are added up in fp32 by the optimizer: never two rows' in one bf16 tensor."""
    model, _ = tuned("llama", SETTINGS["lora"])
    calls: list[int] = []
    prepare(model, TRUSTED, "sdpa").learn(shared_rows(range(0))[1], 1.0, None, lambda: calls.append(1))
    assert len(calls) == 5  # the forest, the two rows behind the second head, that head, the first


def test_what_is_ahead_is_computed_once() -> None:
    model, _ = tuned("llama", SETTINGS["lora"])
    forward = prepare(model, TRUSTED, "sdpa")
    assert forward.decoder is not None
    tokens: list[int] = []
    forward.decoder.register_forward_pre_hook(lambda module, given, named: tokens.append(named["input_ids"].shape[1]), with_kwargs=True)
    forward.learn(shared_rows(range(0))[1])
    assert tokens == [11, 40, 5, 8, 6]
