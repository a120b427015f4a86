"""Setting up: what is pinned, what the Makefile does where Python is too old, and what a second call costs."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(
    line.strip().split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
)


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0]).lower()


PINNED = {name_of(name): pin for name, pin in PINS.items()}


def test_every_dependency_is_pinned() -> None:
    wanted = {name_of(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]}
    assert wanted <= set(PINNED), f"constraints.txt has no pin for {sorted(wanted - set(PINNED))}"
    assert PINNED["torch"] == "2.13.0"  # without +cpu, so that an index with other builds has it too
    assert not any("+" in pin for pin in PINNED.values())


def test_what_the_dependencies_need_is_pinned_too() -> None:
    """Everything reachable from the dependencies in this environment, CUDA's own packages aside."""
    seen: set[str] = set()
    todo = [*PROJECT["dependencies"]]
    while todo:
        name = name_of(todo.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            todo += [wanted.name for wanted in map(Requirement, requires(name) or []) if wanted.marker is None or wanted.marker.evaluate()]
        except PackageNotFoundError:
            seen.discard(name)  # for another platform
    seen -= {"setuptools", "pip", "triton"}
    unpinned = sorted(name for name in seen - set(PINNED) if not name.startswith(("nvidia-", "cuda-")))
    assert not unpinned, f"constraints.txt has no pin for {unpinned}"


def test_the_pins_are_what_is_tested() -> None:
    for name in ("torch", "transformers", "tokenizers", "safetensors", "bitsandbytes", "peft", "gguf", "pydantic"):
        assert version(name).partition("+")[0] == PINNED[name], f"{name}: run `make setup` again"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -eu" in script.read_text(encoding="utf-8") and "make test" in script.read_text(encoding="utf-8")


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | variables
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    if not shutil.which("make"):
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_an_old_python_is_refused_with_the_cure(copy: Path) -> None:
    old = program(copy / "old-python", '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    done = make(copy, "setup", f"PYTHON={old}")
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr and "Python 3.9.1" in done.stderr and "make setup PYTHON=" in done.stderr
    assert not (copy / ".venv").exists()
    assert "needs Python 3.11 or newer" in make(copy, "setup", "PYTHON=no-such-python").stderr


def test_a_python_without_venv_is_refused_with_the_cure(copy: Path) -> None:
    bare = program(copy / "bare-python", '#!/bin/sh\n[ "$1" = -m ] && { mkdir -p .venv/bin; exit 1; }\nexit 0\n')
    done = make(copy, "setup", f"PYTHON={bare}")
    assert done.returncode == 2 and "python3-venv" in done.stderr
    assert not (copy / ".venv").exists()  # half an environment would be taken for a whole one


def test_a_second_setup_does_nothing(copy: Path) -> None:
    """The environment's python is a stand-in that writes down what it is asked."""
    program(copy / ".venv/bin/python", '#!/bin/sh\necho "$@" >> asked\n')
    assert make(copy, "setup", f"PYTHON={sys.executable}").returncode == 0
    asked = (copy / "asked").read_text(encoding="utf-8").splitlines()
    assert len(asked) == 2
    assert "install -c constraints.txt -e .[test]" in asked[0] and "tunesmith.models.source builtin:smollm2-135m-instruct" in asked[1]
    assert make(copy, "setup").returncode == 0
    assert len((copy / "asked").read_text(encoding="utf-8").splitlines()) == 2
    later = (copy / ".venv/model.stamp").stat().st_mtime + 10
    os.utime(copy / "constraints.txt", (later, later))
    assert make(copy, "setup").returncode == 0
    assert len((copy / "asked").read_text(encoding="utf-8").splitlines()) == 4  # changed pins install again
