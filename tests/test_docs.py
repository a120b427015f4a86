"""The documentation is read as a user would: its links lead somewhere, its commands and settings exist, its tables are the program's."""

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith import cli, config
from tunesmith.errors import UserError
from tunesmith.methods.settings import SETTINGS
from tunesmith.run_yaml import parse_value

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
KEYS = {row.key.split(" ")[0] for row in config.table()}
SECTIONS = {key.split(".")[0] for key in KEYS} - {"out"}


def pages() -> list[object]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES]


def script(name: str) -> ModuleType:
    """A script of the repository that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(path: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page, of one language where it is given ("" takes those without)."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


@cache
def anchors(path: Path) -> set[str]:
    """What `#...` may name on a page, by GitHub's rule: lower case, punctuation away, blanks to hyphens."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_the_settings_page_is_the_programs_table() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == script("docs/make_settings.py").page(), (
        "the settings changed: run `python docs/make_settings.py`"
    )


@pytest.mark.parametrize("path", pages())
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", pages())
def test_settings_that_pages_name_exist(path: Path) -> None:
    """`section.key` in code, wherever it stands; only the first word of a section counts as one of ours."""
    text = path.read_text(encoding="utf-8")
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    named = {match for each in code for match in re.findall(rf"(?<![\w./])(?:{'|'.join(SECTIONS)})\.[a-z_0-9]+(?![\w/(])", each)}
    files = {name for name in named if name.rsplit(".", 1)[1] in ("py", "json", "md", "yaml", "safetensors", "jsonl", "csv", "txt", "png")}
    errors = set(re.findall(r"`(\S+): no such setting", text))  # shown as what is refused
    unknown = named - files - KEYS - errors
    assert not unknown, f"no such settings: {sorted(unknown)}"


@pytest.mark.parametrize("path", pages())
def test_commands_that_pages_show_exist(path: Path) -> None:
    """Each shown command passes the verb's own parser, its settings the run's own checks."""
    problems = []
    for block in blocks(path) + blocks(path, "bash"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if re.match(r"\s*(\$ )?tunesmith ", line):
                problems += refused(line)
    assert not problems


def refused(line: str) -> list[str]:
    """Why a command line could not be run, apart from the files and models that it names."""
    words = shlex.split(line.partition(" # ")[0].strip().removeprefix("$ "))[1:]
    words = [word for word in words if word != "..."]
    if not words or words[0] not in cli.VERBS:
        return [] if words[:1] in (["--version"], ["--help"]) else [f"{line}: no such verb"]
    if words[0] == "quickstart" or "--help" in words:
        return []
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"tunesmith.verbs.{words[0].replace('-', '_')}").add_arguments(parser)
    try:
        found, left = parser.parse_known_args(words[1:])
        settings = [word for word in words[1:] if re.match(r"[a-z_]+\.[a-z_]+=", word)]
        flags = [("method", found.method, "--method")] if getattr(found, "method", None) else []
        config.load(overrides=flags + [(key, parse_value(value), word) for word in settings for key, _, value in [word.partition("=")]])
    except (UserError, SystemExit, argparse.ArgumentError) as error:
        return [f"{line}: {error}"]
    return [f"{line}: {left}"] if left else []


def test_commands_are_read_with_their_method() -> None:
    line = "tunesmith train --model M --data my.jsonl --method {} method.rank=8"
    assert refused(line.format("dora")) == []
    assert "method.rank: a setting of lora, dora, pissa, not of full" in refused(line.format("full"))[0]
    assert "no method 'dorra'" in refused(line.format("dorra"))[0]
    assert refused("tunesmith train --model M --data my.jsonl --method prompt method.tokens=8") == []


@pytest.mark.parametrize("path", pages())
def test_run_files_that_pages_show_load(path: Path, tmp_path: Path) -> None:
    for block in blocks(path, "yaml"):
        lines = block.splitlines()
        # a block of one-line examples, or one run file
        for text in lines if all(re.match(r"\w+: \{.*\}$", line) for line in lines) else [block]:
            file = tmp_path / "run.yaml"
            file.write_text(text, encoding="utf-8")
            config.load(file)


def test_the_first_steps_say_what_the_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that docs/start.md has people write is read as that page says."""
    from tunesmith.data.look.check import check
    from tunesmith.data.sources import understand

    page = (ROOT / "docs/start.md").read_text(encoding="utf-8")
    table = next(block for block in blocks(ROOT / "docs/start.md", "csv") if block.startswith("question,answer"))
    monkeypatch.chdir(tmp_path)
    Path("shop.csv").write_text(table, encoding="utf-8")
    [checked] = check(["shop.csv"], understand("auto", {}, None, guess=True))
    report = checked.report
    assert f"shop.csv: {report.good} of {report.rows} rows usable ({report.format}, {report.encoding})" in page
    assert report.bad and all(f"shop.csv:{row.line}: {row.reason}" in page for row in report.bad)
    assert all(f"shop.csv: note: {warning}" in page for warning in checked.warnings())


def test_every_method_stands_in_the_pages_that_list_them() -> None:
    for page in ("README.md", "docs/concepts.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert [name for name in [*SETTINGS, "qlora"] if name not in text] == []


def test_event_records_are_described() -> None:
    """docs/run_folder.md names every event and every field of it."""
    import dataclasses

    from tunesmith.events import EVENTS

    text = (ROOT / "docs/run_folder.md").read_text(encoding="utf-8")
    missing = [name for name in EVENTS if f"`{name}`" not in text]
    missing += [f"{name}.{field.name}" for name, record in EVENTS.items() for field in dataclasses.fields(record) if field.name not in text]
    assert not missing


def example(number: int, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A Python block of docs/extend.md as a module."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(blocks(ROOT / "docs/extend.md", "python")[number], "docs/extend.md", "exec"), module.__dict__)
    return module


def test_the_metric_of_the_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = example(0, "starts_with", monkeypatch)
    assert metric.score(["yes sir", "no"], ["yes", "maybe"]).value == 0.5


def test_the_format_of_the_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.data.sample import RowError

    shape = example(1, "dialogue", monkeypatch)
    row = {"dialogue": "Q: Are you open?\nA: Yes."}
    assert shape.recognises(set(row), row)
    assert [(m["role"], m["content"]) for m in shape.to_sample(row, "a:1").messages] == [("user", "Are you open?"), ("assistant", "Yes.")]
    for bad in ({"dialogue": "Q: Are you open?"}, {"dialogue": "Hello"}, {"dialogue": ""}, {}):
        with pytest.raises(RowError):
            shape.to_sample(bad, "a:1")


def test_the_method_of_the_example_works(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    import torch

    from tunesmith.methods import method, settings
    from tunesmith.methods.tuning import Start
    from tunesmith.models import load, slots

    names = dict(vars(settings))
    exec(compile(blocks(ROOT / "docs/extend.md", "python")[2], "docs/extend.md", "exec"), names)
    monkeypatch.setattr(settings, "Scale", names["Scale"], raising=False)
    scale = example(3, "scale", monkeypatch)

    model = load.load(tiny_llama, dtype=torch.float32).model
    ids_BT = torch.arange(12)[None]
    before = model(input_ids=ids_BT).logits
    tuning = scale.build(model, names["Scale"](targets=["q", "up"]))
    scale.init(tuning, Start(model, None, 0, lambda path: torch.empty(0)), names["Scale"]())
    method.place(model, tuning)
    assert len(tuning.adapter) == 4
    torch.testing.assert_close(model(input_ids=ids_BT).logits, before)

    for parameter in tuning.parameters.values():
        parameter.data.normal_(1.0, 0.3)
    live = model(input_ids=ids_BT).logits
    assert not torch.allclose(live, before)
    slots.lift(model, tuning.adapter)
    for path, module in tuning.adapter.items():
        layer = model.get_submodule(path)
        layer.weight.data = module.folded(layer.weight.data)
    torch.testing.assert_close(model(input_ids=ids_BT).logits, live, rtol=1e-4, atol=1e-5)
