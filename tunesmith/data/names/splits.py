"""Which files of a data set are meant: its subsets and splits, by what its page says, else by the names of folders and files.

`OWNER/NAME:en:validation` is the split `validation` of the subset `en`; a split is `train` unless another one is named.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tunesmith.data.files.recognise import SUFFIXES
from tunesmith.errors import UserError

ID = re.compile(r"(?P<market>ms:)?(?P<name>\w[\w.-]*/\w[\w.-]*)(?P<revision>@[\w./-]+)?(?P<part>(:[\w.+-]+)*)")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-\d{5}-of-\d{5}\b.*")
NO_DATA = ("readme", "license", "licence", "dataset_info", "dataset_infos", "dataset_dict", "state", "changelog")  # stems
SHOWN = 6


@dataclass(frozen=True, slots=True)
class Choice:
    """Which files of a data set are read, and what a user should know of it."""

    files: tuple[str, ...]  # paths inside the data set
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Named:
    """A data set as the user named it."""

    name: str  # OWNER/NAME
    market: str = ""  # "ms:" for ModelScope
    revision: str = ""
    parts: tuple[str, ...] = ()  # subset and split, in any order

    def __str__(self) -> str:
        return f"{self.market}{self.name}" + (f"@{self.revision}" if self.revision else "") + "".join(f":{part}" for part in self.parts)


def parse(source: str) -> Named | None:
    """A hub id, or None where it cannot be one."""
    found = ID.fullmatch(source)
    if not found:
        return None
    parts = tuple(found["part"].split(":")[1:]) if found["part"] else ()
    return Named(found["name"], found["market"] or "", (found["revision"] or "")[1:], parts)


def choose(
    paths: Sequence[str], configs: list[dict[str, Any]], named: Named, *, subset: str = "", split: str = "", folder: str = ""
) -> Choice:
    """The files of one subset and split. Raises UserError naming those that there are, where one must be chosen."""
    data = [path for path in sorted(paths) if readable(path) and (not folder or path.startswith(folder.rstrip("/") + "/"))]
    if not data:
        inside = f" in its folder {folder!r}" if folder else ""
        raise UserError(f"{named}: the data set holds no file{inside} that can be read; known are {', '.join(SUFFIXES)}")
    table = _by_page(configs, data) or _by_names(data, folder)
    subsets = list(table)
    subset, split = _parts(named, table, subset, split)
    if not subset and len(subsets) > 1:
        usual = [config["config_name"] for config in configs if config.get("default") and config.get("config_name") in table]
        usual = usual or [name for name in ("default", "") if name in table]
        if not usual:
            raise UserError(f"{named}: the data set has several subsets, {_list(subsets)}: choose one, such as {_bare(named)}:{subsets[0]}")
        subset = usual[0]
    elif not subset:
        subset = subsets[0]
    if subset not in table:
        raise UserError(f"{named}: no subset {subset!r}; there are {_list(subsets)}")
    files, said = _of_split(table[subset], split, named)
    taken, kinds = _one_kind(files)
    left = [path for path in data if path not in set(taken)]
    said = " and ".join(filter(None, (f"subset {subset}" if subset and len(subsets) > 1 else "", said)))
    notes = [f"{named}: {said or 'a part'} taken ({_list(taken)}); left out: {_list(left)}"] if left else []
    return Choice(tuple(taken), (*notes, *([f"{named}: {kinds}"] if kinds else [])))


def readable(path: str) -> bool:
    """Whether a file inside a data set is data that can be read, by its name."""
    pure = PurePosixPath(path)
    suffixes = [suffix.lower() for suffix in pure.suffixes if suffix != ".gz"]
    hidden = any(part.startswith(".") for part in pure.parts)
    return bool(suffixes) and suffixes[-1] in SUFFIXES and pure.name.split(".")[0].lower() not in NO_DATA and not hidden


def _by_page(configs: list[dict[str, Any]], paths: list[str]) -> dict[str, dict[str, list[str]]]:
    """{subset: {split: files}} as the data set's page says; {} where it says nothing that is there."""
    table: dict[str, dict[str, list[str]]] = {}
    for config in configs:
        under = str(config.get("data_dir") or "").strip("/")
        files = config.get("data_files") or (f"{under}/**" if under else None)
        entries = files if isinstance(files, list) and files and isinstance(files[0], dict) else [{"split": "", "path": files}]
        for each in entries:
            patterns = each.get("path")
            patterns = [patterns] if isinstance(patterns, str) else patterns or []
            whole = [f"{under}/{pattern}" if under and not str(pattern).startswith(under) else str(pattern) for pattern in patterns]
            found = [path for path in paths if any(_matches(path, pattern) for pattern in whole)]
            for path in found:
                splits = table.setdefault(str(config.get("config_name", "default")), {})
                splits.setdefault(str(each.get("split") or _split(path)), []).append(path)
    return table


def _matches(path: str, pattern: str) -> bool:
    """As the hub's patterns: * stays inside a folder, ** does not."""
    if "**" in pattern or not pattern.count("*"):
        return fnmatchcase(path, pattern.replace("**/*", "*").replace("**", "*")) or path == pattern
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def _by_names(paths: list[str], folder: str = "") -> dict[str, dict[str, list[str]]]:
    """{subset: {split: files}} by the names of folders and files; the subset is "" for files in no folder of their own."""
    table: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        inner = path[len(folder.strip("/")) + 1 :] if folder else path
        folders = [part for part in PurePosixPath(inner).parts[:-1] if part != "data" and not _keyword(part)]
        table.setdefault("/".join(folders), {}).setdefault(_split(inner), []).append(path)
    return table


def _split(path: str) -> str:
    """The split that a path names, "" for none: by its shard's name, its file's name, its folders."""
    pure = PurePosixPath(path)
    if shard := SHARD.fullmatch(pure.name):
        return _keyword(shard["split"]) if shard["split"] in sum(SPLITS.values(), ()) else shard["split"]
    return next((found for part in reversed(pure.parts) if (found := _keyword(part))), "")


def _keyword(name: str) -> str:
    """`my_dev.jsonl` is validation."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in SPLITS.items() for word in names if word in words), "")


def _parts(named: Named, table: dict[str, dict[str, list[str]]], subset: str, split: str) -> tuple[str, str]:
    """What stands behind the colons: each is a subset or a split."""
    splits = {name for splits in table.values() for name in splits}
    for part in named.parts:
        if part in table and not subset:
            subset = part
        elif (part in splits or _keyword(part) in splits - {""}) and not split:
            split = part
        else:
            raise UserError(
                f"{named}: no subset or split {part!r}; there are the subsets {_list([name for name in table if name]) or 'none'}, "
                f"the splits {_list(sorted(splits - {''})) or 'none'}"
            )
    return subset, split


def _of_split(splits: dict[str, list[str]], split: str, named: Named) -> tuple[list[str], str]:
    """The files of a split (train where none is asked for), and how to say so."""
    wanted = split or "train"
    name = wanted if wanted in splits else _keyword(wanted)
    if name and name in splits:
        return splits[name], f"split {name}"
    if not split or split == "train":
        if "" in splits:
            return splits[""], ""
        if len(splits) == 1 and not split:
            only = next(iter(splits))
            return splits[only], f"split {only}, the only one,"
    known = [each for each in splits if each]
    cure = f"; there are {_list(known)}: choose one, such as {_bare(named)}:{known[0]}" if known else "; its files name no splits"
    raise UserError(f"{named}: no split {wanted!r}{cure}")


def _one_kind(paths: list[str]) -> tuple[list[str], str]:
    """Data sets often hold the same rows in several kinds of file: those of the commonest kind."""
    kinds = Counter(_kind(path) for path in paths)
    if len(kinds) == 1:
        return paths, ""
    most = max(kinds, key=lambda kind: (kinds[kind], -list(SUFFIXES).index(kind)))
    others = ", ".join(kind for kind in kinds if kind != most)
    return [path for path in paths if _kind(path) == most], f"files of several kinds; the {most} ones are taken, not {others}"


def _kind(path: str) -> str:
    return next(suffix.lower() for suffix in reversed(PurePosixPath(path).suffixes) if suffix != ".gz")


def _list(names: Sequence[str]) -> str:
    shown = [name or "(no name)" for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _bare(named: Named) -> str:
    return str(Named(named.name, named.market, named.revision))


def page(readme: Path) -> list[dict[str, Any]]:
    """The subsets that a data set's page names between its first two lines `---`; [] for none."""
    try:
        parts = readme.read_text(encoding="utf-8").split("---", 2)
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    configs = head.get("configs") if isinstance(head, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []
