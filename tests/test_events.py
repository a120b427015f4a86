"""Events: to a line and back, what a kill leaves, and the rewinding of a resumed run."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from tunesmith import events
from tunesmith.events import (
    EVENTS,
    NAMES,
    Evaluated,
    EventLog,
    Finished,
    Resumed,
    Saved,
    Started,
    Step,
    Warned,
    from_json,
    read_events,
    rewind,
)

VALUES: dict[object, object] = {int: 7, float: 0.1, str: 'Grüße 中\n"x"', bool: True, dict[str, float]: {"f1": 0.5}}


def example(cls, **others):
    return cls(**({field.name: VALUES[field.type] for field in dataclasses.fields(cls)} | others))


def step(number, **others):
    return example(Step, step=number, **others)


@pytest.mark.parametrize("name", EVENTS)
def test_a_line_and_back(name):
    event = example(EVENTS[name])
    line = events.to_json(event)
    assert "\n" not in line and from_json(line) == event
    values = json.loads(line)
    assert values["event"] == name and isinstance(values["time"], float)
    assert set(values) == {"event", *(f.name for f in dataclasses.fields(EVENTS[name]))}


def test_names_and_the_fields_that_others_rely_on():
    assert list(EVENTS) == ["started", "step", "evaluated", "saved", "resumed", "warned", "finished"]
    assert {EVENTS[name] for name in EVENTS} == set(NAMES)
    expected = {
        "step": "step loss learning_rate grad_norm tokens computed_tokens learned_tokens tokens_per_second peak_memory_bytes",
        "finished": "steps loss tokens computed_tokens learned_tokens seconds seconds_to_first_step tokens_per_second peak_memory_bytes",
    }
    for name, fields in expected.items():
        assert set(fields.split()) <= {f.name for f in dataclasses.fields(EVENTS[name])}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_still_json_for_everyone(value):
    line = events.to_json(step(3, loss=value, skipped=True))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(line, parse_constant=refuse)["loss"] is None
    again = from_json(line)
    assert isinstance(again, Step) and math.isnan(again.loss) and again.skipped and again.grad_norm == 0.1
    scores = events.to_json(example(Evaluated, scores={"f1": value, "em": 0.5}))
    assert json.loads(scores, parse_constant=refuse)["scores"] == {"f1": None, "em": 0.5}


def test_events_are_records():
    with pytest.raises(dataclasses.FrozenInstanceError):
        step(1).step = 2
    assert 1.7e9 < Warned(message="x").time < 1e11 and Warned(message="x").step == 0


@pytest.mark.parametrize(("line", "error"), [('{"event": "exploded"}', KeyError), ('{"event": "saved", "made_up": 1}', TypeError)])
def test_unknown_events_and_fields(line, error):
    with pytest.raises(error):
        from_json(line)


def write(path, *happened):
    log = EventLog(path)
    for event in happened:
        log.write(event)
    log.close()


def test_a_log_is_appended_to_and_flushed_event_by_event(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write(step(1))
    assert list(read_events(path)) == [step(1)], "readable while the run goes on"
    log.close()
    write(path, step(2))
    assert [event.step for event in read_events(path) if isinstance(event, Step)] == [1, 2]


def test_a_last_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, step(1), step(2))
    whole = path.read_bytes()
    for cut in range(1, 40):
        path.write_bytes(whole[:-cut])
        assert [event.step for event in read_events(path) if isinstance(event, Step)] == [1]
    path.write_bytes(b"")
    assert list(read_events(path)) == []
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_rewinding_leaves_no_step_twice(tmp_path):
    path = tmp_path / "events.jsonl"
    happened = [
        example(Started), Warned(message="early"), step(1), example(Evaluated, step=1), step(2), example(Saved, step=2), step(3),
        Warned(message="late", step=3), step(4), example(Finished),
    ]  # fmt: skip
    write(path, *happened)
    path.write_bytes(path.read_bytes() + b'{"event": "st')
    assert rewind(path, 2) == 4
    assert list(read_events(path)) == happened[:6]
    write(path, example(Resumed, step=2), step(3))
    assert [event.step for event in read_events(path) if isinstance(event, Step)] == [1, 2, 3]
    assert sorted(each.name for each in Path(tmp_path).iterdir()) == ["events.jsonl"]


def test_rewinding_keeps_the_bytes_of_what_it_keeps(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, step(1, loss=0.1 + 0.2), Warned(message="Grüße"))
    before = path.read_bytes()
    assert rewind(path, 1) == 0 and path.read_bytes() == before


def test_rewinding_what_is_not_there_makes_an_empty_log(tmp_path):
    assert rewind(tmp_path / "events.jsonl", 0) == 0 and (tmp_path / "events.jsonl").read_bytes() == b""
