"""One virtual environment a peer, made once below build/peers. A peer that cannot be installed keeps its error, which the results show."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

# The versions that the figures are about.
PINS: dict[str, list[str]] = {
    "trl": ["trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "bitsandbytes==0.50.2"],
    "llamafactory": ["llamafactory==0.9.5", "bitsandbytes==0.50.2"],
    "unsloth": ["unsloth==2026.10.9", "unsloth_zoo==2026.10.9"],
    "axolotl": ["axolotl==0.19.0"],
    "torchtune": ["torchtune==0.6.1", "torchao==0.13.0"],  # later ones lack what it imports
}
# Beside them on an NVIDIA GPU.
ON_GPU: dict[str, list[str]] = {"trl": ["liger-kernel"], "llamafactory": ["liger-kernel"]}
# Peers that say themselves which torch they work with; the others get the one that we are measured with.
OWN_TORCH = {"unsloth", "axolotl"}
TAIL = 12  # lines of an error that are kept


def packages(name: str, gpu: bool) -> list[str]:
    return [*PINS[name], *(ON_GPU.get(name, []) if gpu else [])]


def ready(folder: Path, name: str, *, gpu: bool, seconds: float | None = None) -> str | None:
    """Make the environment where it is not made yet; None, or why there is none, in the installer's own words.

    An error is kept and not tried again: delete the folder for another try. An installation that took longer than `seconds`
    goes on at the next call.
    """
    stamp, failed, wanted = folder / "ready", folder / "error.txt", packages(name, gpu)
    if stamp.exists() and set(wanted) <= set(stamp.read_text(encoding="utf-8").split("\n")):
        return None
    if failed.exists():
        return failed.read_text(encoding="utf-8")
    print(f"making {name}'s environment: {', '.join(wanted)}", flush=True)
    try:
        _make(folder, name, wanted, seconds)
    except subprocess.TimeoutExpired:
        return f"not installed within {seconds:.0f} s yet"
    except subprocess.CalledProcessError as error:
        folder.mkdir(parents=True, exist_ok=True)
        failed.write_text(told(error.stderr or error.stdout or str(error)), encoding="utf-8")
        return failed.read_text(encoding="utf-8")
    stamp.write_text("\n".join(wanted), encoding="utf-8")
    return None


def held_here(name: str) -> bool:
    """Whether our own environment has exactly the versions that a peer is pinned to, for a machine without a package index."""
    return all(installed(package) == version for package, _, version in (pin.partition("==") for pin in PINS[name]))


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def told(output: str) -> str:
    """The last lines of what a program said; the machine's paths are left out."""
    lines = [line.strip() for line in output.replace(str(Path.home()), "~").splitlines() if line.strip()]
    return "\n".join(" ".join(_without_folders(word) for word in line.split()) for line in lines[-TAIL:])


def _without_folders(word: str) -> str:
    return word.rsplit("/", 1)[-1] if word.count("/") > 1 else word


def python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _make(folder: Path, name: str, wanted: Sequence[str], seconds: float | None) -> None:
    if not (folder / "bin" / "python").exists():
        _run([sys.executable, "-m", "venv", str(folder)], seconds)
    pip = [python(folder), "-m", "pip", "--disable-pip-version-check"]
    constraints = folder / "constraints.txt"
    constraints.write_text("" if name in OWN_TORCH else "torch==2.13.0\n", encoding="utf-8")
    _run([*pip, "install", "-q", "-c", str(constraints), *wanted], seconds)
    if name == "llamafactory":
        _mend_llamafactory(folder, pip)


def _mend_llamafactory(folder: Path, pip: Sequence[str]) -> None:
    """Text training needs neither sound nor images, but importing LLaMA-Factory imports torchaudio, and transformers imports
    torchvision where it is installed. Their wheels hold CUDA code: beside a torch without CUDA, or with another CUDA version,
    torchaudio refuses in its version check, and torchvision's operators are missing. So torchvision goes, and torchaudio
    loses its compiled part, without which it imports and skips that check.
    """
    _run([*pip, "uninstall", "-q", "-y", "torchvision"], None)
    for library in folder.glob("lib/python*/site-packages/torchaudio/lib"):
        for file in library.glob("*.so"):
            file.unlink()
        shutil.rmtree(library / "__pycache__", ignore_errors=True)


def _run(command: Sequence[str], seconds: float | None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds)
