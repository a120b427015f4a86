"""What every task on the shelf keeps."""

import inspect
from typing import get_args

import pytest

from tunesmith import config
from tunesmith.data.sample import Sample
from tunesmith.tasks import TASKS

CHAT = ({"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here"})
ROWS = {
    "generate": Sample("a:1", CHAT),
    "text": Sample("a:1", text="raw"),
    "classify": Sample("a:1", CHAT, source="Where?", label="Here"),
    "tag": Sample("a:1", CHAT, source="Where?", entities=((0, 5, "X"),)),
}
# A row of one task that another can learn as well: an answer is words, and a short one may be a label.
ALSO = {("generate", "classify"), ("generate", "tag"), ("classify", "generate")}

tasks = pytest.mark.parametrize("name", TASKS)


@tasks
def test_a_task_says_what_it_is(name):
    assert TASKS[name].__name__.rpartition(".")[2] == name and len(inspect.getdoc(TASKS[name]) or "") > 60
    assert isinstance(TASKS[name].HEAD, bool) and isinstance(TASKS[name].METRICS, tuple)


@tasks
def test_tasks_with_a_head_say_what_it_tells_apart(name):
    for function in ("labels", "classes", "render", "decode"):
        assert hasattr(TASKS[name], function) == TASKS[name].HEAD, function


@tasks
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_learned_or_refused_with_a_cure(name, row):
    reason = TASKS[name].misfit(ROWS[row])
    if name == row or (name, row) in ALSO:
        assert reason == ""
    else:
        assert "task.name=" in reason or "data.columns=" in reason


def test_each_is_a_setting():
    assert set(TASKS) | {"auto"} == set(get_args(config.Task.model_fields["name"].annotation))
