import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.step.test_compiled import quantised, row, tiny, tuned
from tunesmith.data.corpus.batches import Row
from tunesmith.models import attention_cuda, slots
from tunesmith.models.proof import Proof
from tunesmith.models.score import Score
from tunesmith.step import acceleration, buckets, forward, graphs
from tunesmith.step.acceleration import Acceleration
from tunesmith.step.forward import Forward
from tunesmith.step.graphs import Again, Graphs
from tunesmith.step.optim import Optimizer

ROWS = ((20, 13), (50,), (16, 17, 18, 5), (7,), (64,), (9, 9, 9, 9, 9), (30, 2))
TOO_MANY = (1,) * 60


def replayed(computed: Forward, tuning: Any, rows: Any = ROWS) -> Graphs:
    """On, and in use, as the run has it."""
    first = slots.first_position(computed.model)
    found = buckets.of_rows([row(lengths) for lengths in rows], 64, 64)
    made = Graphs(computed.decoder, first, tuning.parameters, found, Again())
    made.on()
    made.settled = True
    computed.replayed = made
    return made


def pair(name: str, kind: str = "llama", quantise: bool = False, **values: Any) -> list[tuple[Forward, Any]]:
    """The same model twice, tuned alike."""
    made = []
    for _ in range(2):
        model = quantised(tiny(kind)) if quantise else tiny(kind)
        tuning = tuned(model, name, **values)
        made.append((forward.prepare(model, Proof(True, True, ()), "sdpa"), tuning))
    return made


def steps(computed: Forward, tuning: Any, rows: list[Row], count: int = 3) -> tuple[list[Tensor], Optimizer]:
    """A few optimizer steps over all of the rows; every loss and every gradient of each."""
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios={})
    found = []
    for _ in range(count):
        for each in rows:
            found.append(computed.learn(each, 0.1, None, optimizer.gather))
        found += [master.grad.clone() for master in optimizer.masters.values() if master.grad is not None]
        optimizer.clip(1.0)
        optimizer.step(1e-3)
    return found, optimizer


def same(ours: list[Tensor], theirs: list[Tensor], close: float = 1e-6) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close * max(1e-3, other.abs().max().item()))


METHODS = [
    ("lora", {"rank": 4}), ("pissa", {"rank": 4}), ("adapter", {}), ("full", {}), ("freeze", {}), ("prefix", {"tokens": 3}),
    ("ptuning_v2", {"tokens": 3}),
]  # fmt: skip


def test_the_list_of_methods_is_that_of_the_tests() -> None:
    assert tuple(name for name, _ in METHODS) == graphs.METHODS


@pytest.mark.parametrize(("name", "values"), METHODS, ids=[name for name, _ in METHODS])
def test_rows_of_all_layouts_learn_the_same_over_several_steps(name: str, values: Any) -> None:
    (plain, theirs), (ours, tuning) = pair(name, **values)
    made = replayed(ours, tuning)
    rows = [row(lengths) for lengths in ROWS]
    expected, _ = steps(plain, theirs, rows)
    found, _ = steps(ours, tuning, rows)
    same(found, expected, 2e-5)
    assert made.turn == 3 * len(rows), "every row was replayed"


def test_a_row_s_loss_and_gradients_to_the_last_digits() -> None:
    (plain, theirs), (ours, tuning) = pair("lora", rank=4)
    replayed(ours, tuning)
    for lengths in ROWS:
        for computed in (plain, ours):
            computed.learn(row(lengths))
        same([p.grad for p in tuning.parameters.values()], [p.grad for p in theirs.parameters.values()])
        same([ours.learn(row(lengths))], [plain.learn(row(lengths))])


def test_rows_that_fit_no_bucket_are_mixed_with_those_that_do() -> None:
    (plain, theirs), (ours, tuning) = pair("lora", "qwen3", rank=4)
    made = replayed(ours, tuning)
    forked = Row(**{**{name: getattr(row((8, 5, 6)), name) for name in Row.__slots__}, "parents": (-1, 0, 0)})
    rows = [row(TOO_MANY), row((20, 13)), forked, row((33,)), row((90, 60))]
    expected, _ = steps(plain, theirs, rows)
    found, _ = steps(ours, tuning, rows)
    same(found, expected, 2e-5)
    assert made.turn == 3 * 2


def test_over_nf4() -> None:
    (plain, theirs), (ours, tuning) = pair("lora", quantise=True, rank=4)
    replayed(ours, tuning)
    rows = [row(lengths) for lengths in ROWS]
    same(steps(ours, tuning, rows)[0], steps(plain, theirs, rows)[0], 2e-5)


def test_masters_of_halves_take_the_gradients_of_every_row() -> None:
    (plain, theirs), (ours, tuning) = pair("full")
    for computed in (plain, ours):
        computed.model.to(torch.float64)  # not fp32, so with masters, but exact on every processor
    replayed(ours, tuning)
    rows = [row(lengths) for lengths in ROWS]
    same(steps(ours, tuning, rows)[0], steps(plain, theirs, rows)[0], 1e-5)


def test_the_head_s_gradient_and_the_replay_s_meet_in_one_sum() -> None:
    """The loss of a trained head writes into the gradient before the backward pass; tied, it is the embedding's."""
    (plain, theirs), (ours, tuning) = pair("full")
    replayed(ours, tuning)
    sums = []
    for computed, each in ((plain, theirs), (ours, tuning)):
        optimizer = Optimizer(each.parameters, "adamw", weight_decay=0.0, ratios={})
        name = next(name for name, parameter in each.parameters.items() if parameter is computed.model.get_input_embeddings().weight)
        for lengths in ROWS:
            computed.learn(row(lengths), 0.1, optimizer.gradient_of(name), optimizer.gather)
        sums.append([optimizer.gradient_of(name)])
    same(sums[1], sums[0], 2e-6)


def test_labels_of_a_task() -> None:
    (plain, theirs), (ours, tuning) = pair("lora", rank=4)
    found = []
    for computed, each in ((plain, theirs), (ours, tuning)):
        score = Score("classify", ["a", "b", "c"], computed.model.config.hidden_size)
        score.begin(0)
        headed = Forward(computed.model, True, True, score)
        if computed is ours:
            replayed(headed, each)
        each_row = row((20, 13))
        labelled = Row(each_row.ids_T, (20, 13), (0, 1), torch.tensor([19, 32]), torch.tensor([2, 0]), 33, 33)
        found.append([headed.learn(labelled), *[parameter.grad for parameter in [*each.parameters.values(), *score.parameters()]]])
    same(found[1], found[0], 2e-6)


def test_a_step_that_is_not_finite_leaves_nothing_behind() -> None:
    (plain, theirs), (ours, tuning) = pair("lora", rank=4)
    replayed(ours, tuning)
    optimizer = Optimizer(tuning.parameters, "adamw", weight_decay=0.0, ratios={})
    assert not torch.isfinite(ours.learn(row((20, 13)), float("nan")))
    assert not torch.isfinite(optimizer.clip(0.0))
    optimizer.forget()
    ours.learn(row((50,)))
    plain.learn(row((50,)))
    same([p.grad for p in tuning.parameters.values()], [p.grad for p in theirs.parameters.values()])


def test_evaluation_goes_the_plain_way() -> None:
    (plain, _), (ours, tuning) = pair("lora", rank=4)
    made = replayed(ours, tuning)
    rows = [row(lengths) for lengths in ROWS]
    assert ours.mean_loss(rows) == plain.mean_loss(rows) and made.turn == 0


def test_memory_of_one_row_is_not_read_after_the_next() -> None:
    _, (ours, tuning) = pair("lora", rank=4)
    replayed(ours, tuning)
    first = ours.loss(row((20, 13)))
    ours.loss(row((50,)))
    with pytest.raises(AssertionError, match="before the next row"):
        first.backward()


# --- compared at the start ---


def compared(spoil: bool = False) -> tuple[list[str], Forward, Graphs, Acceleration]:
    _, (ours, tuning) = pair("lora", rank=4)
    found = buckets.of_rows([row(lengths) for lengths in ROWS], 64, 64)
    made = Graphs(ours.decoder, 0, tuning.parameters, found, Again(reads_python=not spoil))
    ours.replayed = made
    one = Acceleration(graphs.NAME, made.on, made.off, 1e-4)
    told = acceleration.proved(ours, row((20, 13, 9)), [one], tuning.parameters)
    assert all(parameter.grad is None for parameter in tuning.parameters.values()), "nothing of a comparison is left"
    return told, ours, made, one


def test_it_is_compared_with_the_plain_way() -> None:
    told, _, made, one = compared()
    assert told == [] and one.is_on and made.turn == 1 and len(made.recordings) == len(made.buckets)


def test_a_recording_that_holds_another_row_s_layout_is_found_out() -> None:
    told, ours, made, one = compared(spoil=True)  # Python knows what it knew when it was recorded, as on a card
    assert "CUDA graphs give something else" in told[0] and not one.is_on and made.recordings == [] and made.sums == {}
    assert made(row((20, 13))) is None
    assert torch.isfinite(ours.learn(row((20, 13))))


def test_what_cannot_be_recorded_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Again, function: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Again, "record", fails)
    told, ours, _, one = compared()
    assert "CUDA graphs cannot be used here (RuntimeError: operation not permitted" in told[0] and not one.is_on
    assert torch.isfinite(ours.learn(row((20, 13))))


# --- what a card reads ---


def test_a_card_s_attention_finds_the_row_s_documents_in_the_buffer() -> None:
    _, (ours, tuning) = pair("lora", rank=4)
    made = Graphs(ours.decoder, 0, tuning.parameters, buckets.of_rows([row((20, 13))], 64, 40), Again(reads_python=False))
    made.on()
    one = made.recordings[0]
    forest = copy.copy(one.arguments["forest"])
    recorded = attention_cuda._segments(forest, one.ids_1T.device)
    assert recorded.queries is recorded.keys is one.arguments["cu_seq_lens_q"] and recorded.longest_queries == one.bucket.longest
    for lengths in ((20, 13), (7, 9, 10)):
        filled = next(each for each in made.recordings if each.bucket.padding(lengths) is not None)
        assert made(row(lengths)) is not None
        padded = (*lengths, *(filled.bucket.padding(lengths) or ()))
        assert filled.arguments["cu_seq_lens_q"].diff().tolist() == list(padded)
        assert filled.arguments["position_ids"][0].tolist() == [at for length in padded for at in range(length)]
        assert filled.ids_1T[0, : sum(lengths)].equal(row(lengths).ids_T) and filled.ids_1T[0, sum(lengths) :].eq(0).all()


def test_buffers_stay_where_they_were_recorded() -> None:
    _, (ours, tuning) = pair("lora", rank=4)
    made = replayed(ours, tuning)

    def places() -> list[int]:
        return [
            tensor.data_ptr()
            for one in made.recordings
            for tensor in (one.ids_1T, one.h_TC, one.dh_TC, one.arguments["position_ids"], one.arguments["cu_seq_lens_q"])
        ] + [tensor.data_ptr() for tensor in made.sums.values()]

    before = places()
    steps(ours, tuning, [row(lengths) for lengths in ROWS])
    assert places() == before


def test_where_there_are_none() -> None:
    assert "on cpu" in graphs.impossible(torch.device("cpu")) and graphs.impossible(torch.device("cuda")) == ""
    assert isinstance(graphs.recorder(torch.device("cpu")), Again)
