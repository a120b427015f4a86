"""`data.info`: LLaMA-Factory's `dataset_info.json`, read unchanged: names of data sets, where they lie, how their rows are meant.

    {"support": {"file_name": "support.json", "columns": {"prompt": "question", "response": "answer"}},
     "chats": {"hf_hub_url": "OWNER/NAME", "formatting": "sharegpt", "split": "train", "num_samples": 1000}}

An entry is checked when it is named, so that one broken entry does not stand in the way of the others.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.fields import describe
from tunesmith.data.names.adapt import OTHERS, USUAL, USUAL_OPENAI, Adapt
from tunesmith.errors import UserError

FILE = "dataset_info.json"
FORMATTINGS = ("alpaca", "sharegpt", "openai")
PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
KEYS = (*PLACES, "formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
COLUMNS: tuple[str, ...] = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios")
COLUMNS += ("chosen", "rejected", "kto_tag")
# tag -> the role that it names, as turns are called here
TAGS = {"user_tag": "human", "assistant_tag": "gpt", "observation_tag": "observation", "function_tag": "function_call"}
TAGS |= {"system_tag": "system"}
# What is read where an entry names no columns.
BY_DEFAULT = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "openai": {"messages": "messages", "system": "system", "tools": "tools"},
}


@dataclass(frozen=True, slots=True)
class Book:
    """A `dataset_info.json`: the entries as they stand there."""

    path: Path
    entries: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set of a book."""

    name: str
    kind: Literal["file", "hf", "ms"]
    place: str  # a path relative to the book's folder, or a hub id
    subset: str
    split: str
    folder: str
    rows: int | None  # num_samples
    adapt: Adapt


def load(setting: str = "auto") -> Book | None:
    """The book that `data.info` names: a file or its folder. `auto` is ./dataset_info.json, else ./data/dataset_info.json, else none.

    Raises UserError.
    """
    if setting == "auto":
        for place in (Path(FILE), Path("data") / FILE):
            if place.is_file() and (entries := _read(place)) is not None and _is_book(entries):
                return Book(place, entries)
        return None
    path = Path(setting).expanduser()
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise UserError(f"data.info: {path}: no such file; name a {FILE} or the folder that holds one")
    entries = _read(path)
    if entries is None or not _is_book(entries):
        raise UserError(
            f'data.info: {path} names no data sets; it is written {{"NAME": {{"file_name": "FILE.json"}}}}, as LLaMA-Factory\'s {FILE} is'
        )
    return Book(path, entries)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"data.info: {path}: not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"data.info: {path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    return value if isinstance(value, dict) else None


def _is_book(entries: dict[str, Any]) -> bool:
    """`datasets` writes a file of the same name beside what it saves, which describes one data set and names none."""
    return any(isinstance(entry, dict) and set(PLACES) & set(entry) for entry in entries.values())


def entry(book: Book, name: str) -> Entry:
    """An entry of the book by its name, checked. Raises UserError with every misfit at once."""
    raw = book.entries[name]
    where = f"{book.path}: {name}"
    if not isinstance(raw, dict):
        raise UserError(f'{where} is {describe(raw)}, not an object such as {{"file_name": "FILE.json"}}')
    problems = _misfits(where, raw)
    kind, place = _place(where, raw, problems)
    if problems:
        raise UserError(*problems)
    formatting = raw.get("formatting", "alpaca")
    ranking = bool(raw.get("ranking", False))
    openai = formatting == "openai"
    tags = raw.get("tags") or {}
    adapt = Adapt(
        name,
        formatting,
        ranking,
        _columns(raw, formatting, ranking),
        tags.get("role_tag") or ("role" if openai else "from"),
        tags.get("content_tag") or ("content" if openai else "value"),
        _roles(tags, openai),
    )
    texts = {key: raw.get(key) or "" for key in ("subset", "split", "folder")}
    return Entry(name, kind, place, texts["subset"], texts["split"], texts["folder"], raw.get("num_samples"), adapt)


def _columns(raw: dict[str, Any], formatting: str, ranking: bool) -> dict[str, str]:
    """Named columns count alone; where none are named, the usual ones."""
    if "columns" in raw:
        columns = {ours: theirs for ours, theirs in raw["columns"].items() if theirs}
        if formatting != "alpaca":
            columns.setdefault("messages", BY_DEFAULT[formatting]["messages"])
    else:
        columns = dict(BY_DEFAULT[formatting])
    if ranking:
        columns = {"chosen": "chosen", "rejected": "rejected"} | columns
    return columns


def _roles(tags: dict[str, str], openai: bool) -> dict[str, str]:
    """What the file calls a role -> what it is called here. Tags that the entry names count before usual names."""
    named = {theirs: TAGS[tag] for tag, theirs in tags.items() if tag in TAGS and theirs}
    renamed = tags.get("role_tag", "") == "role" or "user" in named
    usual = USUAL | (USUAL_OPENAI if openai or renamed or not tags else {}) | ({} if tags else OTHERS)
    spoken_for = set(named.values())
    return named | {theirs: role for theirs, role in usual.items() if theirs not in named and role not in spoken_for}


def _misfits(where: str, raw: dict[str, Any]) -> list[str]:
    problems = _unknown(where, raw, KEYS)
    formatting = raw.get("formatting", "alpaca")
    if formatting not in FORMATTINGS:
        problems.append(f"{where}: formatting {formatting!r}{_near(str(formatting), FORMATTINGS)}; there are {', '.join(FORMATTINGS)}")
    if not isinstance(raw.get("ranking", False), bool):
        problems.append(f"{where}: ranking is {describe(raw['ranking'])}; it is true or false")
    rows = raw.get("num_samples")
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows < 1):
        problems.append(f"{where}: num_samples is {describe(rows)}; it is a whole number of rows")
    for key, names in (("columns", COLUMNS), ("tags", ("role_tag", "content_tag", *TAGS))):
        inner = raw.get(key, {})
        if not isinstance(inner, dict):
            problems.append(f"{where}: {key} is {describe(inner)}, not an object of names")
            continue
        problems += _unknown(f"{where}: {key}", inner, names)
        wrong = [name for name, value in inner.items() if value is not None and not isinstance(value, str)]
        problems += [f"{where}: {key}.{name} is {describe(inner[name])}, not a name" for name in wrong]
    for key in ("subset", "split", "folder", *PLACES):
        if raw.get(key) is not None and not isinstance(raw[key], str):
            problems.append(f"{where}: {key} is {describe(raw[key])}, not a text")
    if "[" in str(raw.get("split") or ""):
        problems.append(f"{where}: split {raw['split']!r} cuts a part out of a split; write the split alone, and num_samples")
    return problems


def _place(where: str, raw: dict[str, Any], problems: list[str]) -> tuple[Literal["file", "hf", "ms"], str]:
    """Where the data lies. A hub comes first, as in LLaMA-Factory; Hugging Face before ModelScope."""
    if raw.get("hf_hub_url"):
        return "hf", raw["hf_hub_url"]
    if raw.get("ms_hub_url"):
        return "ms", raw["ms_hub_url"]
    if raw.get("file_name"):
        return "file", raw["file_name"]
    if raw.get("script_url"):
        problems.append(f"{where}: script_url is a program that would be run to make the data; save what it makes and give file_name")
    elif raw.get("cloud_file_name") or raw.get("om_hub_url"):
        key = "cloud_file_name" if raw.get("cloud_file_name") else "om_hub_url"
        problems.append(f"{where}: {key} is no place that data is fetched from here; fetch it and give file_name")
    elif not problems:
        problems.append(f"{where}: says nowhere where the data is: give file_name, hf_hub_url or ms_hub_url")
    return "file", ""


def _unknown(where: str, raw: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"{where}: no such key {key!r}{_near(key, names)}; there are {', '.join(names)}" for key in raw if key not in names]


def _near(name: str, names: tuple[str, ...]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
