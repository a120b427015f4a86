"""What the user names as data becomes files: a file, a folder, a glob, a built-in set, each perhaps with `#500` behind it."""

import difflib
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.recognise import SUFFIXES
from tunesmith.errors import UserError

LEFT_OUT = ("readme", "license", "licence", "dataset_info", "dataset_infos", "changelog")  # stems of files in a folder that are no data


@dataclass(frozen=True, slots=True)
class File:
    """A file to read. A built-in set has no path."""

    name: str  # as the user wrote it
    path: Path | None
    notes: tuple[str, ...] = ()  # what was left out beside it


@dataclass(frozen=True, slots=True)
class Resolved:
    """The files of one source and how many rows of them are wanted (None: all)."""

    files: tuple[File, ...]
    rows: int | None = None


def resolve(source: str) -> Resolved:
    """The files that a source names. Raises UserError with the nearest existing name."""
    if source.startswith("builtin:"):
        name, rows = _cut(source)
        return Resolved((File(_builtin(name), None),), rows)
    if Path(source).expanduser().exists():
        return Resolved(_files(source))
    name, rows = _cut(source)
    return Resolved(_files(name), rows)


def _cut(source: str) -> tuple[str, int | None]:
    """`PATH#500` into the path and 500."""
    name, mark, number = source.rpartition("#")
    if not mark:
        return source, None
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"{source}: behind # stands how many rows to take, such as {name}#500")
    return name, int(number)


def _builtin(source: str) -> str:
    from tunesmith.data.builtin import BUILTIN

    name = source.removeprefix("builtin:")
    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=1)
        raise UserError(
            f"{source}: no such built-in data"
            + (f"; did you mean builtin:{near[0]}?" if near else "")
            + f"; there are {', '.join(BUILTIN)}"
        )
    return source


def _files(name: str) -> tuple[File, ...]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.exists():
        return (File(name, path),)
    if glob.has_magic(name):
        found = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise UserError(f"{name}: no file matches this pattern")
        return tuple(File(match, Path(match)) for match in found)
    raise UserError(_missing(name, path))


def _folder(name: str, folder: Path) -> tuple[File, ...]:
    """All files below whose suffix we know, sorted by path; what is left out is said with the first."""
    taken: list[tuple[str, Path]] = []
    left: list[tuple[str, Path]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
        readable = bool(suffixes) and suffixes[-1].lower() in SUFFIXES
        plain = path.name.split(".")[0].lower()
        (taken if readable and plain not in LEFT_OUT else left).append((f"{name.rstrip('/')}/{inside.as_posix()}", path))
    if not taken:
        raise UserError(f"{name}: the folder holds no data file; known are {', '.join(SUFFIXES)}")
    shown = ", ".join(written for written, _ in left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    notes = (f"left out of the folder: {shown}",) if left else ()
    return tuple(File(written, path, notes if index == 0 else ()) for index, (written, path) in enumerate(taken))


def _missing(name: str, path: Path) -> str:
    """What to say of a path that does not exist."""
    if re.match(r"https?://", name):
        return f"{name}: data is read from files; download it first (curl -LO {name}) and name the file"
    folder = path.parent
    known_suffix = any(suffix.lower() in SUFFIXES for suffix in path.suffixes)
    if re.fullmatch(r"(ms:)?[\w.-]+/[\w.-]+", name) and not known_suffix and not folder.is_dir():
        fetch = f"hf download {name.removeprefix('ms:')} --repo-type dataset --local-dir data"
        return f"{name}: no such file or folder. This version fetches no data set from a hub: download it ({fetch}) and name the file"
    if not folder.is_dir():
        existing = next(parent for parent in folder.parents if parent.is_dir())
        return f"{name}: no such file; there is no folder {str(folder)!r} (the path is right up to {str(existing)!r})"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"{name}: no such file" + (f"; did you mean {str(folder / near[0])!r}?" if near else f" in the folder {str(folder)!r}")
