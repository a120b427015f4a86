"""Every page of docs/methods has the same form, so that methods can be compared: formula and drawing, settings, shapes, cost, when to
choose it, the default rate, the paper, a recipe that runs. What it says of settings and rates is the program's."""

import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith import config
from tunesmith.methods.method import METHODS, learning_rates
from tunesmith.methods.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
STEMS = [*METHODS, "loftq"]  # the last is a way for LoRA to begin
SECTIONS = ("## Shapes", "## Cost", "## When")
_RATE = re.compile(r"^Default learning rate(?: \(`(?P<key>\w+)=(?P<value>\w+)`\))?: (?P<rates>.+)$", re.MULTILINE)

pages = pytest.mark.parametrize("stem", STEMS)


def page(stem: str) -> str:
    return (ROOT / "docs" / "methods" / f"{stem}.md").read_text(encoding="utf-8")


@pages
def test_the_form(stem: str) -> None:
    text = page(stem)
    assert text.startswith(f"# {stem}: ")
    drawn = re.search(r"\A# [^\n]+\n\n```\n(.+?)^```$", text, re.DOTALL | re.MULTILINE)
    assert drawn, "the formula and a drawing come first"
    assert re.search(r"[=←]", drawn[1]) and len(re.findall(r"[─│►]", drawn[1])) > 3
    at = [text.index(f"\n{section}\n") for section in SECTIONS]
    assert at == sorted(at), f"in the order of {SECTIONS}"
    assert re.search(r"^[Ss]peed: ", text[at[1] : at[2]], re.MULTILINE)
    assert re.search(r"^Papers?: .+\barXiv:\d{4}\.\d{4,5}", text[at[2] :], re.MULTILINE | re.DOTALL)


@pages
def test_it_ends_with_a_recipe_that_is_of_this_method(stem: str) -> None:
    last = page(stem).rstrip("\n").rpartition("\n\n")[2]
    named = re.findall(r"\[(recipes/\w+\.yaml)\]\(\.\./\.\./\1\)", last)
    assert last.startswith("Recipe: ") and named
    for name in named:
        assert config.load(ROOT / name).run.method.name == ("lora" if stem == "loftq" else stem)


@pages
def test_every_setting_is_told_and_no_other_method_s(stem: str) -> None:
    text = page(stem)
    own = set(SETTINGS["lora" if stem == "loftq" else stem].model_fields) - {"name"}
    table = {name for row in re.findall(r"^\| (`method\..+?) \|", text, re.MULTILINE) for name in re.findall(r"`method\.(\w+)`", row)}
    assert table <= own
    if stem == "loftq":
        assert table == {"init", "loftq_iterations"}  # the rest is lora's page
    else:
        assert table | ({"loftq_iterations"} if stem == "lora" else set()) == own


@pages
def test_the_default_rates_are_those_of_the_method(stem: str) -> None:
    """Where a rate changes, its page does: `Default learning rate: 1e-4 at 576 channels, ...`."""
    lines = list(_RATE.finditer(page(stem)))
    assert lines
    for line in lines:
        said = {
            int(width.replace(",", "")): float(rate) for rate, width in re.findall(r"([\d.]+e-\d+) at ([\d,]+) channels", line["rates"])
        }
        settings: Any = SETTINGS["lora" if stem == "loftq" else stem]
        chosen = {} if line["key"] is None else {line["key"]: line["value"]}
        assert said == dict(learning_rates(settings(**chosen)))
