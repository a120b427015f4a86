"""What stands around a model that vLLM serves: a script that a shell takes, and names that are all there."""

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tunesmith.export.vllm_files import ASK, README, REQUIREMENTS, SERVE, Handed

PLAIN = Handed("base", (), (), ())
BOTH = Handed("owner/base", ("a", "b-1"), ("p",), ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"))


def run(folder: Path, handed: Handed, python: str, *more: str) -> list[str]:
    """The words that the script runs `python` with."""
    (folder / "serve.sh").write_text(SERVE.text(handed), encoding="utf-8")
    told = {"PATH": "/usr/bin:/bin", "PYTHON": python, "PORT": "9"}
    return subprocess.run(["sh", str(folder / "serve.sh"), *more], env=told, capture_output=True, text=True, check=True).stdout.split("|")[
        :-1
    ]


@pytest.fixture
def python(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\n[ "$1" = -c ] && exit "${NO_VLLM:-0}"\nfor word; do printf "%s|" "$word"; done\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_the_script_starts_what_is_there(tmp_path: Path, python: str) -> None:
    folder = tmp_path / "a folder with blanks"
    folder.mkdir()
    words = run(folder, BOTH, python, "--dtype", "float32")
    assert words[:4] == ["-m", "vllm.entrypoints.cli.main", "serve", f"{folder}/model"]
    said = dict(pairwise(words))
    assert (said["--port"], said["--host"], said["--served-model-name"]) == ("9", "127.0.0.1", "owner/base")
    assert said["--generation-config"] == f"{folder}/model"
    at = words.index("--lora-modules")
    assert words[at + 1 : at + 3] == [f"a={folder}/adapters/a", f"b-1={folder}/adapters/b-1"]
    assert words[-3:] == ["--enable-prompt-embeds", "--dtype", "float32"], "what the caller says comes last"


def test_a_build_of_another_name_is_started_another_way(tmp_path: Path, python: str) -> None:
    Path(python).write_text(Path(python).read_text().replace("${NO_VLLM:-0}", "1"))
    words = run(tmp_path, PLAIN, python)
    assert words[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", f"{tmp_path}/model"]
    assert "--enable-lora" not in words and "--enable-prompt-embeds" not in words


def test_texts_name_what_is_there() -> None:
    text = README.text(BOTH)
    assert all(f"`{name}`" in text for name in ("owner/base", "a", "b-1", "p")) and "ask.py p" in text
    assert "ask.py" not in README.text(PLAIN) and "vllm==" in REQUIREMENTS.text(PLAIN)
    compile(ASK.text(), "ask.py", "exec")
