"""The Modelfile is proved; an `ollama` that is a script stands in for Ollama."""

import os
from pathlib import Path

import pytest

from tests.export.tiny_runs import run_of
from tests.runs import own_cache, quiet  # noqa: F401
from tunesmith.errors import UserError
from tunesmith.export import ollama
from tunesmith.export.modelfile import template_in
from tunesmith.export.source import describe
from tunesmith.export.target import Options, Proof, Source, Truth
from tunesmith.export.truth import truth_of

SCRIPT = """#!/bin/sh
case "$1" in
  list) exit {list};;
  create) grep TEMPLATE "$4" > /dev/null && cp Modelfile "{kept}" ; exit {create};;
  show) cat "{shown}";;
  rm) touch "{kept}.removed";;
esac
"""


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Source], Truth, Path]:
    place = tmp_path_factory.mktemp("ollama")
    sources = [describe(str(run_of(tiny_llama, place, "lora")))]
    ollama.check(sources, Options())
    truth = truth_of(sources[0], True, quiet)
    (place / "out").mkdir()
    ollama.write(sources, place / "out", Options(), quiet)
    return sources, truth, place / "out"


@pytest.fixture
def proved(made: tuple[list[Source], Truth, Path], monkeypatch: pytest.MonkeyPatch) -> Proof:
    """llama.cpp's part is that of the law; here it agrees."""
    monkeypatch.setattr(ollama.opened, "proof", lambda *given, **more: Proof("llama.cpp", {"mean_kl": 0.0}))
    return ollama.prove(made[0], [made[1]], made[2], Options(), quiet)


def test_a_modelfile_beside_one_gguf(made: tuple[list[Source], Truth, Path]) -> None:
    text = (made[2] / "Modelfile").read_text()
    assert text.startswith("FROM ./lora-f16.gguf\n") and (made[2] / "lora-f16.gguf").is_file()
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 512\n' in text and "SYSTEM" not in text
    assert "<|im_start|>user" in template_in(text)


def test_without_ollama_it_says_how_to_take_it(proved: Proof) -> None:
    assert proved.failures == () and proved.figures["rendered_conversations"] == 5
    assert any("ollama create lora -f Modelfile" in note for note in proved.notes)


def test_another_template_is_found(made: tuple[list[Source], Truth, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama.opened, "proof", lambda *given, **more: Proof("llama.cpp", {}))
    path = made[2] / "Modelfile"
    own = path.read_text()
    try:
        path.write_text(own.replace("<|im_start|>assistant\n", "<|im_start|>model\n"))
        proof = ollama.prove(made[0], [made[1]], made[2], Options(), quiet)
    finally:
        path.write_text(own)
    assert len(proof.failures) == 5 and "the Modelfile's template feeds other tokens" in proof.failures[0]


def test_llama_cpp_makes_the_trained_tokens_of_what_the_template_writes(made: tuple[list[Source], Truth, Path]) -> None:
    [source], truth, folder = made
    said = [source.renderer.prompt(talk).text for talk in truth.conversations]
    file = folder / "lora-f16.gguf"
    assert ollama.opened.proof(file, "f16", truth, source.renderer, rendered=said).failures == ()
    [failure] = ollama.opened.proof(file, "f16", truth, source.renderer, rendered=[*said[:4], said[4] + " "]).failures
    assert failure.startswith("the template, as llama.cpp tokenises what it writes, feeds other tokens") and "conversation 5" in failure


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, shown: str, **codes: int) -> Path:
    """A program called ollama; the Modelfile that it was given."""
    script, kept = folder / "ollama", folder / "kept"
    (folder / "shown").write_text(shown)
    script.write_text(SCRIPT.format(list=codes.get("list", 0), create=codes.get("create", 0), kept=kept, shown=folder / "shown"))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return kept


def test_ollama_takes_it_and_is_left_as_it_was(
    made: tuple[list[Source], Truth, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (made[2] / "Modelfile").read_text()
    kept = stand_in(tmp_path, monkeypatch, template_in(text))
    assert ollama._created("lora", made[2], quiet) == (" and Ollama", [], [])
    assert kept.read_text() == text and (tmp_path / "kept.removed").exists()


@pytest.mark.parametrize(
    ("shown", "codes", "said"),
    [
        ("{{ .Prompt }}", {}, "keeps another template"),
        ("", {"create": 1}, "`ollama create` refuses the folder"),
        ("", {"list": 1}, "its server does not run"),
    ],
)
def test_what_ollama_says_is_told(
    shown: str, codes: dict[str, int], said: str, made: tuple[list[Source], Truth, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, shown, **codes)
    _, failures, notes = ollama._created("lora", made[2], quiet)
    assert said in (failures + notes)[0] and bool(failures) == ("list" not in codes)


def test_a_model_without_a_template_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from tests.conftest import write_byte_tokenizer

    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    write_byte_tokenizer(tmp_path, None)
    with pytest.raises(UserError, match="no chat template"):
        ollama.check([describe(str(tmp_path))], Options())
