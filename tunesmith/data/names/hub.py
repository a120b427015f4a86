"""A data set of a hub becomes files in the hub's cache: those of one subset and one split; nothing else is fetched.

    OWNER/NAME                          Hugging Face (mirrors by HF_ENDPOINT)
    ms:OWNER/NAME                       ModelScope (needs the package modelscope)
    OWNER/NAME@REVISION:SUBSET:SPLIT    a part of it

Which files those are says `splits.py`. Programs in a data set are never run.
"""

import glob
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.files.recognise import SUFFIXES
from tunesmith.data.names.splits import Choice, Named, choose, page, readable
from tunesmith.errors import UserError

CONVERTED = "refs/convert/parquet"  # where the hub keeps data sets that are programs, as files
WANTED = [*(f"*{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz")), "README.md"]


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a data set on the hub."""

    revision: str | None
    sizes: dict[str, int]  # path: bytes
    configs: list[dict[str, Any]] = field(default_factory=list)  # subsets, as the page has them


def fetch(named: Named, *, subset: str = "", split: str = "", folder: str = "") -> tuple[Path, Choice]:
    """The folder in the hub's cache, and which of its files are meant. Raises UserError with what to do."""
    return _modelscope(named, subset, split, folder) if named.market else _hugging_face(named, subset, split, folder)


def _hugging_face(named: Named, subset: str, split: str, folder: str) -> tuple[Path, Choice]:
    from huggingface_hub import constants

    found = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _listing(named, named.revision or None)
    if isinstance(found, str):  # not reached: what an earlier run fetched may still be there
        local = _kept(named, found)
        return local, choose(_inside(local), page(local / "README.md"), named, subset=subset, split=split, folder=folder)
    if not any(readable(path) for path in found.sizes) and not named.revision:
        converted = _listing(named, CONVERTED, found)
        found = found if isinstance(converted, str) else converted
    choice = choose(list(found.sizes), found.configs, named, subset=subset, split=split, folder=folder)
    _room(named, sum(found.sizes[path] for path in choice.files), Path(constants.HF_HUB_CACHE))
    return _downloaded(named, found.revision, choice), choice


def _listing(named: Named, revision: str | None, instead: Listing | None = None) -> Listing | str:
    """The hub's list of files, or why the hub was not reached. `instead` is what counts where there is no such revision."""
    from huggingface_hub import HfApi

    try:
        info = _asked(named, lambda: HfApi().dataset_info(named.name, revision=revision, files_metadata=True))
    except UserError:
        if instead is None:
            raise
        return instead
    except Exception as error:  # the library under the hub's client raises its own, and another one in each generation
        return _first_line(error)
    configs = (info.card_data.to_dict() if info.card_data else {}).get("configs") or []
    return Listing(revision, {file.rfilename: file.size or 0 for file in info.siblings or []}, configs)


def _downloaded(named: Named, revision: str | None, choice: Choice) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(path) for path in choice.files] + ["README.md"]
    try:
        return Path(_asked(named, lambda: snapshot_download(named.name, repo_type="dataset", revision=revision, allow_patterns=patterns)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named}: fetching {len(choice.files)} files broke off: {_first_line(error)}", *_cures(named)) from None


def _kept(named: Named, why: str) -> Path:
    """The folder of an earlier run, in the hub's cache."""
    from huggingface_hub import snapshot_download

    for revision in [named.revision] if named.revision else [None, CONVERTED]:
        try:
            return Path(snapshot_download(named.name, repo_type="dataset", revision=revision, local_files_only=True))
        except Exception:
            continue
    raise UserError(f"{named}: no file here, not in the hub's cache, and the hub was not reached: {why}", *_cures(named))


def _asked(named: Named, call: Callable[[], Any]) -> Any:
    """What the hub answers; its refusals in words, as UserError."""
    from huggingface_hub import constants, errors

    try:
        return call()
    except errors.GatedRepoError:
        raise UserError(f"{named}: its owner gives access on request: ask for it on the data set's page, then `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{named}: the hub has no revision {named.revision!r} of it") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{named}: neither a file here nor a data set that you may read on {constants.ENDPOINT} (a private one: `hf auth login`)"
        ) from None


def _cures(named: Named) -> tuple[str, str]:
    by_hand = f"hf download {named.name} --repo-type dataset --local-dir FOLDER"
    return (
        f"fetch it where there is a network ({by_hand}) and name the folder",
        "or set HF_ENDPOINT to a mirror, or write ms: in front for ModelScope",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _modelscope(named: Named, subset: str, split: str, folder: str) -> tuple[Path, Choice]:
    try:
        from modelscope import dataset_snapshot_download
    except ImportError:
        raise UserError(f"{named}: needs the package modelscope: pip install modelscope") from None
    revision = {"revision": named.revision} if named.revision else {}
    try:
        local = Path(dataset_snapshot_download(named.name, allow_file_pattern=WANTED, **revision))
    except Exception as error:  # the package raises its own, requests' and plain ones
        raise UserError(
            f"{named}: ModelScope did not give it: {_first_line(error)}", "fetch it by hand and name the folder: --data FOLDER"
        ) from None
    return local, choose(_inside(local), page(local / "README.md"), named, subset=subset, split=split, folder=folder)


def _inside(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _room(named: Named, needed: int, cache: Path) -> None:
    """Raises UserError where the disk is too small, before anything is fetched."""
    place = next((parent for parent in (cache, *cache.parents) if parent.is_dir()), Path("."))
    free = shutil.disk_usage(place).free
    if needed > free:
        sizes = f"{needed / 1e9:,.1f} GB, but {place} has {free / 1e9:,.1f} GB free"
        raise UserError(f"{named}: takes {sizes}", "choose a subset or split (OWNER/NAME:SUBSET:SPLIT), or set HF_HOME to a larger disk")
