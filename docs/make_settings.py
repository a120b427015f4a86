"""Writes docs/settings.md from the settings themselves: `python docs/make_settings.py`. A test compares the two."""

from pathlib import Path

from tunesmith import config

PAGE = Path(__file__).parent / "settings.md"
HEAD = """# Settings

Made by `python docs/make_settings.py` from `tunesmith/config.py` and `tunesmith/methods/settings.py`: change the sentences there.

A setting is written in a run file (`train: {epochs: 5}`), or behind the verb (`train.epochs=5`, which wins). Values are YAML: lists
`[a,b]`, `2e-4`, `true`, `null`. `auto` is decided once, shown with its reason, kept in `run.yaml`, and taken from there on resume.
An unknown key or a wrong value is an error that names the key, the line and the nearest name; so is a setting that would change nothing
beside the others (a text to begin from with `method.init=random`), with the reason.
`tunesmith train ... --print-config` prints all of them.

`--model` is `model.source`, `--data` is `data.train`, `--method` is `method.name`, `--out` is `out`.
"""
TITLES = {
    "model": "The base model",
    "data": "The data",
    "task": "The task",
    "method": "The method",
    "train": "The optimizer's loop",
    "evaluate": "On the way",
    "out": "The result",
    "serve_with": "Where it goes",
}


def page() -> str:
    """The whole page as Markdown."""
    rows = config.table()
    sections = {row.key.split(".")[0]: [] for row in rows} | {name: [] for name in TITLES}  # a new section shows up untitled
    for row in rows:
        sections[row.key.split(".")[0]].append(row)
    order = [*TITLES, *(name for name in sections if name not in TITLES)]
    return HEAD + "".join(_section(TITLES.get(name, name), sections[name]) for name in order)


def _section(title: str, rows: list[config.Row]) -> str:
    lines = ["", f"## {title}", "", "| key | default | values | |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row.key != "method.name"):  # which method, then what each can be told
        key, _, method = row.key.partition(" ")
        name = f"`{key}`" + (f" {method}" if method else "")
        lines.append(f"| {name} | {_shown(key, row.default)} | {_cell(row.choices)} | {_cell(_note(row, key))} |")
    return "\n".join(lines) + "\n"


def _note(row: config.Row, key: str) -> str:
    return row.sentence + (" Not served by this version yet: leave it." if key in config.NOT_YET else "")


def _shown(key: str, default: str) -> str:
    if default not in ("''", "needed") or key == "method.text":
        return "empty" if default == "''" else f"`{default}`"
    return "by its parts" if key == "out" else "needed"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
