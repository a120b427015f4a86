"""Plans: who is computed next, how much of prompts, who is put back, who waits for what another one computes."""

import torch

from tests.tiny_models import some_ids
from tunesmith.models.attention_layers import AttentionLayer
from tunesmith.serve.ask import Ask
from tunesmith.serve.builtin.cache import Cache
from tunesmith.serve.builtin.scheduler import Answer, Part, Scheduler

LAYERS = [AttentionLayer("", 0, 1, 2)]


def scheduler_of(limit: int = 4096, answers: int = 4, step: int = 32) -> Scheduler:
    cache = Cache(LAYERS, torch.float32, torch.device("cpu"), limit, 256, answers)
    return Scheduler(cache, lambda name: {0: (torch.full((1, 3, 2), 7.0), torch.full((1, 3, 2), 8.0))}, answers, step)


def asked(scheduler: Scheduler, ids: list[int], adapter: str = "", before: int = 0) -> Answer:
    answer = Answer(Ask("", tuple(ids), 100, frozenset()), print, None, adapter, list(ids), before, 100, lambda: None)
    scheduler.waiting.append(answer)
    return answer


def done(parts: list[Part]) -> None:
    """As if the step were computed: those that want a token get one."""
    for part in parts:
        assert part.answer.room is not None
        wanted = part.wants
        part.answer.room.length += part.count
        if wanted:
            part.answer.fed.append(1)
            part.answer.taken += 1


def test_prompts_come_in_stretches_beside_answers_that_go_on() -> None:
    scheduler = scheduler_of()
    first, second = asked(scheduler, some_ids(20, 0).tolist()), asked(scheduler, some_ids(50, 1).tolist())
    plan = scheduler.plan()
    assert [(part.answer, part.count, part.wants) for part in plan] == [(first, 20, True), (second, 12, False)]
    done(plan)
    plan = scheduler.plan()
    assert [(part.answer, part.count, part.wants) for part in plan] == [(first, 1, True), (second, 31, False)]
    done(plan)
    assert [part.count for part in scheduler.plan()] == [1, 7]


def test_tokens_of_one_adapter_stand_together() -> None:
    scheduler = scheduler_of(answers=8)
    for number, adapter in enumerate(["b", "", "a", "b", ""]):
        asked(scheduler, [3 + number, 5], adapter)
    assert [part.answer.adapter for part in scheduler.plan()] == ["", "", "a", "b", "b"]


def test_no_more_than_there_are_places() -> None:
    scheduler = scheduler_of(answers=2)
    answers = [asked(scheduler, [3, number]) for number in range(3)]
    assert [part.answer for part in scheduler.plan()] == answers[:2]
    scheduler.leave(answers[0])
    assert [part.answer for part in scheduler.plan()] == answers[1:]
    scheduler.leave(answers[1])
    scheduler.leave(answers[2])
    assert scheduler.plan() == [] and scheduler.cache.filled == 0


def test_the_newest_is_put_back_and_nobody_let_in_until_somebody_leaves() -> None:
    scheduler = scheduler_of(limit=192, step=256)
    old, new = asked(scheduler, some_ids(22, 0).tolist()), asked(scheduler, some_ids(20, 1).tolist())
    third = asked(scheduler, some_ids(20, 2).tolist())
    while old.taken < 43:
        done(scheduler.plan())
    assert scheduler.preempted == 0 and new.taken == third.taken == 43 and scheduler.cache.allocated == 192
    said = list(third.fed)
    plan = scheduler.plan()  # 64 positions are full: the oldest needs 128, and gets them from the two newest
    assert scheduler.preempted == 2 and [part.answer for part in plan] == [old]
    assert list(scheduler.waiting) == [new, third] and new.room is None
    done(plan)
    assert [part.answer for part in scheduler.plan()] == [old]
    scheduler.leave(old)
    plan = scheduler.plan()
    assert [(part.answer, part.count) for part in plan] == [(new, 63)] and third.fed == said


def test_one_alone_moves_through_the_queue_where_it_needs_both_rows() -> None:
    scheduler = scheduler_of(limit=150, step=256)
    answer = asked(scheduler, some_ids(20, 0).tolist())
    while answer.taken < 60:
        done(scheduler.plan())
    assert answer.room is not None and answer.room.length == 79 and scheduler.preempted == 1


def test_what_another_one_computes_is_waited_for_and_copied() -> None:
    scheduler = scheduler_of(step=28)
    system = some_ids(60, 0).tolist()
    first, second, stranger = (asked(scheduler, system + tail, adapter) for tail, adapter in (([3, 4], ""), ([5, 6], ""), ([3], "a")))
    plan = scheduler.plan()
    assert [part.answer for part in plan] == [first]
    assert first.room is not None
    first.room.slab.keys[0][first.room.row, :, :28] = 5.0
    done(plan)
    plan = scheduler.plan()
    assert [(part.answer, part.count) for part in plan] == [(first, 28)]
    first.room.slab.keys[0][first.room.row, :, 28:56] = 6.0
    done(plan)
    assert {(part.answer, part.count) for part in scheduler.plan()} == {(first, 6), (second, 6), (stranger, 16)}
    assert scheduler.shared_tokens == 56 and second.room is not None
    assert second.room.slab.keys[0][second.room.row, 0, :56, 0].tolist() == [5.0] * 28 + [6.0] * 28


def test_a_prefix_stands_in_front_also_of_what_is_kept() -> None:
    scheduler = scheduler_of(step=256)
    ids = some_ids(50, 0).tolist()
    answer = asked(scheduler, ids, "a", before=3)
    plan = scheduler.plan()
    assert answer.room is not None and answer.room.length == 3 and plan[0].count == 50
    assert answer.room.slab.keys[0][answer.room.row, 0, :4, 0].tolist() == [7.0, 7.0, 7.0, 0.0]
    done(plan)
    scheduler.leave(answer)
    assert scheduler.cache.beginnings.tokens == 53
    again = asked(scheduler, ids, "a", before=3)
    plan = scheduler.plan()
    assert again.room is not None and (again.room.length, plan[0].count) == (52, 1)
    assert again.room.slab.values[0][again.room.row, 0, :3, 0].tolist() == [8.0] * 3
