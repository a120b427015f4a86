"""The name of a model becomes a local folder that transformers opens: config.json, tokenizer, safetensors.

A name is a folder, a .gguf file, `builtin:NAME`, a hub id `owner/name` (`owner/name@revision`), or `ms:owner/name` for
ModelScope. Folders are checked before anything is loaded (`models/folder.py`). What is built is built once, into
`TUNESMITH_CACHE` or ~/.cache/tunesmith: aside, then renamed, with a lock against a second process.
"""

import difflib
import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import UserError
from tunesmith.models.builtin import BUILTIN, fetch_gguf
from tunesmith.models.folder import PICKLES, check_folder
from tunesmith.models.gguf_header import is_gguf

CONVERSION = 1  # raised when gguf.py writes folders differently, so that the cache makes them anew
HUB_ID = re.compile(r"(?!-)[\w.-]+/[\w.-]+(@[\w./-]+)?")
# What a model folder may hold; never *.bin, *.pt, *.py.
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "README.md"]
LISTED = 5  # folders named in a message


@dataclass(frozen=True, slots=True)
class Located:
    folder: Path
    name: str  # short, for titles and file names
    kind: Literal["folder", "gguf", "hub", "builtin"]
    origin: str  # where it came from, exactly: path, `owner/name@commit`, `builtin:NAME`


def opened_as(located: Located) -> str:
    """What `transformers` and `peft` open a base by: a hub id, or a folder."""
    return located.origin.partition("@")[0] if located.kind == "hub" else str(located.folder.resolve())


def cache_folder() -> Path:
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith").expanduser()


def builtin_folder(name: str, cache: Path | None = None) -> Path:
    """Where a built-in model lies, or will lie, in the cache."""
    return (cache or cache_folder()) / "models" / f"{name}-v{CONVERSION}"


def locate(source: str, *, headed: bool = False, cache: Path | None = None, progress: Callable[[str], None] | None = None) -> Located:
    """The local folder of a model. `progress` is told in one sentence what takes long.

    With `headed` it may be one that classifies or tags: good for answering, not for tuning.

    Raises UserError with every problem of the name or folder at once, and what to do.
    """
    tell = progress or (lambda sentence: None)
    cache = cache or cache_folder()
    if not source:
        raise UserError("model.source is empty; name a folder, a .gguf file, a hub id or builtin:smollm2-135m-instruct")
    if source.startswith("builtin:"):
        return _builtin(source, cache, tell)
    if source.startswith("ms:"):
        return _checked(_modelscope(source.removeprefix("ms:"), tell), headed)
    path = Path(source).expanduser()
    if path.is_dir():
        return _checked(Located(path, path.resolve().name, "folder", str(path.resolve())), headed)
    if path.is_file():
        return _file(path, cache, tell)
    if HUB_ID.fullmatch(source) and not source.startswith(("./", "../")) and path.suffix not in (".gguf", ".safetensors", *PICKLES):
        return _checked(_hub(source, tell), headed)
    raise UserError(f"{source}: no such folder or file{_nearest(path)}", "a hub id is written owner/name, such as Qwen/Qwen3-0.6B")


def _checked(located: Located, headed: bool) -> Located:
    if problems := check_folder(located.folder, headed):
        raise UserError(*problems)
    return located


def _builtin(source: str, cache: Path, tell: Callable[[str], None]) -> Located:
    name = source.removeprefix("builtin:")
    if name not in BUILTIN:
        raise UserError(f"{source}: no such built-in model; there is {', '.join(f'builtin:{known}' for known in BUILTIN)}")
    target = builtin_folder(name, cache)
    folder = once(target, lambda aside: _convert(fetch_gguf(name, cache / "downloads", aside, tell), aside / "model", tell))
    return Located(folder, name, "builtin", source)


def _file(path: Path, cache: Path, tell: Callable[[str], None]) -> Located:
    if path.stat().st_size and is_gguf(path):
        whole, state = path.resolve(), path.stat()
        # size and time stand for the content: hashing a large file at every start would take longer than loading it
        key = hashlib.sha256(f"{whole}:{state.st_size}:{state.st_mtime_ns}".encode()).hexdigest()[:12]
        target = cache / "models" / f"{path.stem}-{key}-v{CONVERSION}"
        folder = once(target, lambda aside: _convert(path, aside / "model", tell))
        return Located(folder, path.stem, "gguf", str(whole))
    if path.suffix in PICKLES:
        raise UserError(f"{path}: {PICKLES[path.suffix]}", "convert it where you trust its source, and pass the folder of safetensors")
    if path.suffix in (".safetensors", ".json"):
        raise UserError(f"{path}: pass the folder that holds it: {path.parent}")
    raise UserError(f"{path}: neither a folder nor a GGUF file (it does not begin with GGUF)")


def _convert(gguf: Path, folder: Path, tell: Callable[[str], None]) -> Path:
    from tunesmith.models.gguf import convert

    tell(f"converting {gguf.name} to safetensors (once)")
    convert(gguf, folder)
    return folder


def once(target: Path, build: Callable[[Path], Path]) -> Path:
    """Folder `target` of the cache; built aside and renamed where it is not there yet."""
    if target.is_dir():
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if target.is_dir():  # another process was first
                return target
            aside = target.parent / f".{target.name}.building"
            shutil.rmtree(aside, ignore_errors=True)  # left by a kill: whoever holds the lock is alone here
            aside.mkdir()
            try:
                os.replace(_synced(build(aside)), target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise
        raise UserError(
            f"{target}: cannot be written: {error.strerror}", "set TUNESMITH_CACHE to a folder with room that you may write"
        ) from None
    return target


def _synced(folder: Path) -> Path:
    """The same folder once its files are on the disk: a rename must never outlive its content."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return folder


def _hub(source: str, tell: Callable[[str], None]) -> Located:
    from huggingface_hub import constants, errors, snapshot_download

    local, (owner_name, _, revision) = Path(source), source.partition("@")
    tell(f"looking up {source} ({constants.ENDPOINT})")
    by_hand = f"fetch it where there is a network (hf download {owner_name}) and pass the folder: --model FOLDER"
    mirror = "or set HF_ENDPOINT to a mirror, or write ms: in front for ModelScope"
    try:
        folder = Path(snapshot_download(owner_name, revision=revision or None, allow_patterns=WANTED))
    except errors.GatedRepoError:
        raise UserError(f"{source}: its owner gives access on request: ask for it on the model's page, then `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{source}: the hub has no revision {revision!r} of it") from None
    except errors.RepositoryNotFoundError:
        lacking = f"a model that you may read on {constants.ENDPOINT}"
        if local.parent.is_dir():
            raise UserError(_absent(local), f"as a hub id it is not {lacking} either") from None
        raise UserError(f"{source}: neither a folder here{_nearest(local)} nor {lacking}") from None
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error).strip().splitlines()[0]
        missed = f"not in the hub's cache, and the hub was not reached: {why}"
        if any(local.parent.glob("*/run.yaml")):  # a run is meant: nothing of it can be fetched
            raise UserError(_absent(local), f"as a hub id it is {missed}") from None
        if local.parent.is_dir():
            raise UserError(_absent(local), f"as a hub id it is {missed}", by_hand, mirror) from None
        raise UserError(f"{source}: no folder here{_nearest(local)}, {missed}", by_hand, mirror) from None
    return Located(folder, owner_name.rpartition("/")[2], "hub", f"{owner_name}@{folder.name}")  # snapshots are named by commit


def _modelscope(source: str, tell: Callable[[str], None]) -> Located:
    if not HUB_ID.fullmatch(source):
        raise UserError(f"ms:{source}: a ModelScope id is written ms:owner/name, such as ms:Qwen/Qwen3-0.6B")
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise UserError(f"ms:{source}: needs the package modelscope: pip install modelscope") from None
    owner_name, _, revision = source.partition("@")
    tell(f"looking up {source} (ModelScope)")
    try:
        folder = Path(snapshot_download(owner_name, revision=revision or None, allow_patterns=WANTED))
    except Exception as error:  # the package raises its own, requests' and plain ones
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"ms:{source}: ModelScope did not give it: {why}", "fetch it by hand and pass the folder: --model FOLDER") from None
    return Located(folder, owner_name.rpartition("/")[2], "hub", f"ms:{owner_name}" + (f"@{revision}" if revision else ""))


def _absent(path: Path) -> str:
    """What is said of an id whose owner's name is that of a folder here."""
    there = sorted(entry.name for entry in path.parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    holds = f"; it holds {', '.join(there[:LISTED])}{' ...' if len(there) > LISTED else ''}" if there else ""
    return f"{path}: there is no folder {path.name} in {path.parent}{_nearest(path) or holds}"


def _nearest(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    names = [entry.name for entry in folder.iterdir() if entry.is_dir() or entry.suffix == ".gguf"]
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(folder / name) for name in close)}?" if close else ""


def main() -> int:
    """`python -m tunesmith.models.source NAME`: print the model's folder; setting up puts the built-in one into the cache so."""
    try:
        print(locate(sys.argv[1], progress=lambda sentence: print(sentence, file=sys.stderr)).folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
