"""What the user names as data becomes files: a path, `builtin:NAME`, a name in `data.info`, a hub id, each perhaps with `#500` behind it.

In this order: an existing file, folder or pattern counts before a name, and a name in a `dataset_info.json` before a hub id.
"""

import difflib
import glob
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.data.files.recognise import SUFFIXES
from tunesmith.data.names import hub, splits
from tunesmith.data.names import info as books
from tunesmith.data.names.adapt import Adapt
from tunesmith.data.names.info import Book
from tunesmith.errors import UserError

LEFT_OUT = ("readme", "license", "licence", "dataset_info", "dataset_infos", "changelog")  # stems of files in a folder that are no data


@dataclass(frozen=True, slots=True)
class File:
    """A file to read. A built-in set has no path."""

    name: str  # as the user wrote it
    path: Path | None
    notes: tuple[str, ...] = ()  # what was left out beside it
    adapt: Adapt | None = None  # how its rows are meant, where `data.info` says it
    documents: str = ""  # what one document of a .txt file is, where `data.info` names the file; "": as `data.documents` says


@dataclass(frozen=True, slots=True)
class Resolved:
    """The files of one source and how many rows of them are wanted (None: all)."""

    files: tuple[File, ...]
    rows: int | None = None


def resolve(source: str, info: str = "auto") -> Resolved:
    """The files that a source names; `info` is `data.info`. Raises UserError with the nearest names of all kinds."""
    if source.startswith("builtin:"):
        name, rows = _cut(source)
        return Resolved((File(_builtin(name), None),), rows)
    if Path(source).expanduser().exists():
        return Resolved(_beside_a_name(source, _files(source), info))
    name, rows = _cut(source)
    if Path(name).expanduser().exists() or glob.has_magic(name):
        return Resolved(_files(name), rows)
    book, flaw = _book(info)
    if book is not None and name in book.entries:
        found = _named(name, book)
        return Resolved(found.files, rows or found.rows)
    named = splits.parse(name)
    if named is not None and _may_be_a_hub_id(name, named):
        folder, choice = hub.fetch(named)
        return Resolved(_fetched(str(named), folder, choice), rows)
    raise UserError(_missing(name, Path(name).expanduser(), book), *flaw)


def _book(info: str) -> tuple[Book | None, tuple[str, ...]]:
    """The book, or why it cannot be read: one that nobody named must not stand in the way of a hub id."""
    try:
        return books.load(info), ()
    except UserError as error:
        if info != "auto":
            raise
        return None, error.problems


def _cut(source: str) -> tuple[str, int | None]:
    """`PATH#500` into the path and 500."""
    name, mark, number = source.rpartition("#")
    if not mark:
        return source, None
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"{source}: behind # stands how many rows to take, such as {name}#500")
    return name, int(number)


def _builtin(source: str) -> str:
    from tunesmith.data.names.builtin import BUILTIN

    name = source.removeprefix("builtin:")
    if name not in BUILTIN:
        near = difflib.get_close_matches(name, BUILTIN, n=1)
        raise UserError(
            f"{source}: no such built-in data"
            + (f"; did you mean builtin:{near[0]}?" if near else "")
            + f"; there are {', '.join(BUILTIN)}"
        )
    return source


# --- paths ---


def _files(name: str) -> tuple[File, ...]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.exists():
        return (File(name, path),)
    if not glob.has_magic(name):
        raise UserError(_no_file(name, path))
    found = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not found:
        raise UserError(f"{name}: no file matches this pattern")
    return tuple(File(match, Path(match)) for match in found)


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


def _beside_a_name(source: str, files: tuple[File, ...], info: str) -> tuple[File, ...]:
    """A path counts before a name; where the same word is both, that is said."""
    book = _book(info)[0] if "/" not in source else None
    if book is None or source not in book.entries:
        return files
    note = f"{source} is a path here and also a name in {book.path}: the path is read; rename one of them to read the other"
    return (replace(files[0], notes=(*files[0].notes, note)), *files[1:])


# --- names ---


def _named(name: str, book: Book) -> Resolved:
    """The files of an entry of `data.info`."""
    entry = books.entry(book, name)
    if entry.kind == "file":
        written = str(book.path.parent / entry.place)
        try:
            files = _files(written)
        except UserError as error:
            raise UserError(*(f"{book.path}: {name}: file_name: {problem}" for problem in error.problems)) from None
    else:
        named = splits.Named(entry.place, "ms:" if entry.kind == "ms" else "")
        folder, choice = hub.fetch(named, subset=entry.subset, split=entry.split, folder=entry.folder)
        files = _fetched(str(named), folder, choice)
    return Resolved(tuple(replace(file, adapt=entry.adapt, documents="line") for file in files), entry.rows)


def _fetched(name: str, folder: Path, choice: splits.Choice) -> tuple[File, ...]:
    bare = name.partition(":")[0] if not name.startswith("ms:") else "ms:" + name[3:].partition(":")[0]
    return tuple(File(f"{bare}/{inside}", folder / inside, choice.notes if index == 0 else ()) for index, inside in enumerate(choice.files))


def _may_be_a_hub_id(name: str, named: splits.Named) -> bool:
    """`data/train.jsonl` is a path with a slip in it, not a data set of the owner `data`."""
    suffix = Path(named.name).suffix.lower()
    return bool(named.market) or (suffix not in (*SUFFIXES, ".gz") and not Path(name).expanduser().parent.is_dir())


def _missing(name: str, path: Path, book: Book | None) -> str:
    """What to say of a name that is nothing."""
    if re.match(r"https?://", name):
        return f"{name}: data is read from files; download it first (curl -LO {name}) and name the file"
    if "/" not in name and (near := _nearest_name(name, path, book)):
        return near
    if "/" in name or path.suffix.lower() in SUFFIXES:
        return _no_file(name, path)
    where = f"no data set of that name in {book.path}" if book else f"there is no {books.FILE} here or in ./data that could name it"
    return f"{_no_file(name, path)}, and {where}; a hub id is written OWNER/NAME"


def _no_file(name: str, path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        existing = next(parent for parent in folder.parents if parent.is_dir())
        return f"{name}: no such file; there is no folder {str(folder)!r} (the path is right up to {str(existing)!r})"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"{name}: no such file" + (f"; did you mean {str(folder / near[0])!r}?" if near else f" in the folder {str(folder)!r}")


def _nearest_name(name: str, path: Path, book: Book | None) -> str:
    """What was likely meant among files beside it, built-in sets and names of the book; "" where nothing is near."""
    from tunesmith.data.names.builtin import BUILTIN

    folder = path.parent
    files = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []
    known = {each.partition(".")[0]: f"{each!r} (a file here)" for each in files} | {each: f"{each!r} (a file here)" for each in files}
    known |= {each: f"'builtin:{each}'" for each in BUILTIN}
    if book:
        known |= {each: f"{each!r} (in {book.path})" for each in book.entries}
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    kinds = f"no such file, and no data set of that name in {book.path}" if book else "no such file"
    return f"{name}: {kinds}; did you mean {' or '.join(dict.fromkeys(known[each] for each in near))}?" if near else ""
