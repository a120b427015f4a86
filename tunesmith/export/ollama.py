"""`ollama`: a GGUF file, and a Modelfile whose template writes the tokens that the model was trained on.

Ollama does not use a file's own chat template: it looks for the one of its own that is nearest to it, letter by letter, and takes
`{{ .Prompt }}` where none is near. Neither is what was trained; the Modelfile says it.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.rendering.tokens import Marked
from tunesmith.errors import UserError
from tunesmith.export import agreement, gguf, modelfile
from tunesmith.export.gguf import opened
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.models import load as loading

SEVERAL = False
QUANTIZE = gguf.QUANTIZE
SERVERS = ("ollama",)
MODELFILE = "Modelfile"
CREATES = 3600  # seconds that `ollama create` may take


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for what cannot be a GGUF, and for a chat template that Ollama's language cannot say."""
    [source] = sources
    gguf.check(sources, options)
    if not source.tokenizer.chat_template:
        raise UserError(f"{source.given}: the model has no chat template, and Ollama would feed it bare text; take --to gguf for that")
    _template(source)


def can_prove(options: Options) -> None:
    """Raises UserError where llama.cpp is not on this machine."""
    gguf.can_prove(options)


def merges(sources: Sequence[Source], options: Options) -> bool:
    """Always."""
    return True


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """One GGUF file, and `Modelfile`."""
    [source] = sources
    facts = gguf.write(sources, folder, options, tell)
    found = modelfile.turns(source.renderer)
    config = loading.load_config(source.base).get_text_config()
    stops = [source.tokenizer.convert_ids_to_tokens(index) for index in sorted(source.renderer.stops)]
    context = getattr(config, "max_position_embeddings", None)
    text = modelfile.modelfile(facts["file"], _template(source), stops, modelfile.default_system(found), context)
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    return facts | {"stops": stops, "system_prompt": "none" if found.system is None else found.place, "context": context}


def _template(source: Source) -> str:
    """Raises UserError."""
    renderer = source.renderer
    try:
        text = modelfile.template_of(modelfile.turns(renderer), source.tokenizer.bos_token if renderer.bos else "")
    except UserError as error:
        raise UserError(
            *[f"{source.given}: {problem}" for problem in error.problems],
            "Ollama's template language cannot say this chat template; take --to gguf, which llama.cpp serves with the template as it is",
        ) from None
    return text


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """The template, rendered as Ollama renders it, gives the tokens of training; llama.cpp, on which Ollama is built, opens the file and
    agrees. Where there is an Ollama, it takes the folder."""
    [source], [truth] = sources, truths
    template = modelfile.template_in((folder / MODELFILE).read_text(encoding="utf-8"))
    said = [modelfile.rendered(template, talk) for talk in truth.conversations]
    renderer = source.renderer
    asked = [renderer.bos + renderer.encoder.encode([Marked(text)])[0] for text in said]
    failures = agreement.same_ids(truth.prompts, asked, "the Modelfile's template")
    kind, file = options.quantize or gguf.DEFAULT, folder / gguf.file_of(source, options)
    proof = opened.proof(file, kind, truth, renderer, tell, rendered=said)
    took, problems, notes = _created(source.name, folder, tell)
    if renderer.prints_date:
        notes.append(f"the chat template writes the date; the Modelfile holds {renderer.date}")
    return Proof(
        f"{proof.opened_by}{took}",
        proof.figures | {"rendered_conversations": len(said)},
        (*failures, *proof.failures, *problems),
        (*proof.notes, *notes),
    )


def _created(name: str, folder: Path, tell: Tell) -> tuple[str, list[str], list[str]]:
    """(what is said of Ollama among those that opened it, failures, notes)."""
    program = shutil.which("ollama")
    if program is None:
        return "", [], [f"Ollama itself is not on this machine: `ollama create {name} -f {MODELFILE}` in {folder} takes it"]
    try:
        return _asked(program, name, folder, tell)
    except subprocess.TimeoutExpired as late:
        return "", [], [f"Ollama is here, but `ollama {late.cmd[1]}` did not end within {late.timeout:g} s: it was not proved there"]


def _asked(program: str, name: str, folder: Path, tell: Tell) -> tuple[str, list[str], list[str]]:
    running = subprocess.run([program, "list"], capture_output=True, text=True, timeout=60)
    if running.returncode != 0:
        return "", [], [f"Ollama is here, but its server does not run ({_last(running)}): it was not asked"]
    tell("Ollama takes it")
    trial = f"tunesmith-proof-{re.sub('[^a-z0-9]+', '-', name.lower())}"  # a folder's name may hold what a model's may not
    made = subprocess.run([program, "create", trial, "-f", MODELFILE], cwd=folder, capture_output=True, text=True, timeout=CREATES)
    if made.returncode != 0:
        return "", [f"`ollama create` refuses the folder: {_last(made)}"], []
    try:
        shown = subprocess.run([program, "show", trial, "--template"], capture_output=True, text=True, timeout=60)
    finally:
        subprocess.run([program, "rm", trial], capture_output=True, text=True, timeout=60)
    wanted = modelfile.template_in((folder / MODELFILE).read_text(encoding="utf-8"))
    kept = shown.returncode == 0 and shown.stdout.strip() == wanted.strip()
    return " and Ollama", [] if kept else ["Ollama keeps another template than the Modelfile's"], []


def _last(done: Any) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"code {done.returncode}"
