"""What every program whose settings are imported must keep: each key stands in one table, and each key of a file in the report."""

import itertools

import pytest

from tunesmith import config
from tunesmith.errors import UserError
from tunesmith.imports import TOOLS
from tunesmith.imports.translation import Translation
from tunesmith.verbs.import_config import said

SETTINGS = {row.key.partition(" (")[0] for row in config.table()}


def tables(tool: str) -> dict[str, list[str]]:
    module = TOOLS[tool]
    listed = [key for table in (module.NEEDLESS, module.LEFT) for keys in table.values() for key in keys.split()]
    return {"carried": list(module.CARRIED), "listed": listed, "read": module.READ.split()}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_key_stands_once(tool):
    keys = [key for names in tables(tool).values() for key in names]
    assert sorted({key for key in keys if keys.count(key) > 1}) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_carried_is_a_setting_of_ours(tool):
    assert set(TOOLS[tool].CARRIED.values()) <= SETTINGS


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("value", [True, 1, 0.5, "some words", "", None, [], {}, ["a"], {"a": 1}], ids=str)
def test_every_key_is_accounted_for_whatever_its_value(tool, value):
    """Values of every kind under every key: nothing crashes, and nothing is dropped silently."""
    for key in [*itertools.chain.from_iterable(tables(tool).values()), "a_key_that_nobody_knows"]:
        t = Translation(TOOLS[tool].NAME, {key: value})
        try:
            TOOLS[tool].translate(t)
        except UserError as error:
            assert key in str(error)
            continue
        report = "\n".join([*said(t), *t.refused])
        assert key in report, f"{tool}: {key}: {value!r} is dropped silently"


@pytest.mark.parametrize("tool", TOOLS)
def test_the_names_in_error_messages_are_the_same(tool):
    """`config.ELSEWHERE` says what a key of theirs is called here where somebody writes it into a run file."""
    carried = TOOLS[tool].CARRIED
    assert {key: config.ELSEWHERE[key] for key in carried if key in config.ELSEWHERE} == {
        key: setting for key, setting in carried.items() if key in config.ELSEWHERE
    }
