"""`vllm`: a folder that vLLM serves, with the script that starts it and the versions that it was proved with.

model/                        the whole model; with --keep-base, several DIRs or virtual tokens, the base
adapters/NAME/                a LoRA as vLLM reads it, asked for as model NAME
prompts/NAME.safetensors      virtual tokens of prompt tuning and P-tuning, which a client sends in front of its prompt: ask.py
serve.sh  requirements.txt  README.md
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunesmith.errors import UserError
from tunesmith.export import agreement, served, vllm_proof
from tunesmith.export.even import even
from tunesmith.export.folder import name_both, name_stops
from tunesmith.export.peft import copy_adapter
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.export.vllm_files import ADAPTERS, ASK, EMBEDDINGS, MODEL, PROMPTS, README, REQUIREMENTS, SERVE, Handed
from tunesmith.export.whole import copy
from tunesmith.methods.layouts import layout
from tunesmith.methods.method import unmergeable
from tunesmith.models import load as loading
from tunesmith.models.matrix import name_in, tensor_files
from tunesmith.serve.external.vllm import find_python, lora_flags, rank_of, version_of

SEVERAL = True
QUANTIZE: tuple[str, ...] = ()
SERVERS = ("vllm",)
AT_ONCE = 8  # adapters that may take part in one step of vLLM's; each takes memory for the largest rank


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for what vLLM cannot serve, whole or beside its base."""
    problems = []
    for source in sources:
        if source.tuning.head is not None:
            problems.append(
                f"{source.given}: predicts labels with a head and writes no text; export it with --to safetensors, "
                "and vLLM opens that folder as a pooling model (vllm serve --runner pooling)"
            )
        elif merges(sources, options):
            if misfit := unmergeable(source.tuning, source.given):
                problems.append(f"{source.given}: {misfit}")
        elif source.adapter is None:
            problems.append(f"{source.given} holds no adapter, so that there is nothing to put beside a base")
        else:
            try:
                agreement.refuse(source, "vllm", "vllm", "as it is", "rewritten", "embeddings")
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(*problems)


def can_prove(options: Options) -> None:
    """Raises UserError where vLLM is not on this machine."""
    _vllm(options)


def merges(sources: Sequence[Source], options: Options) -> bool:
    """One source is merged, unless its base is to be kept, or it is virtual tokens, which change no matrix."""
    return len(sources) == 1 and not options.keep_base and not _is_prompt(sources[0])


def _is_prompt(source: Source) -> bool:
    return served.traits_of(source.tuning).kind == "prompt"


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """Model, adapters, virtual tokens, and how they are started and asked."""
    first, merged = sources[0], merges(sources, options)
    facts: dict[str, Any] = {}
    tell("writing the model")
    if merged:
        facts = first.whole.write(folder / MODEL)
    else:
        copy(first.base, folder / MODEL)
        name_stops(folder / MODEL, first.renderer.stops)
        name_both(folder / MODEL)
    loras = [] if merged else [source for source in sources if not _is_prompt(source)]
    prompts = [] if merged else [source for source in sources if _is_prompt(source)]
    if loras:
        facts["adapters"] = {source.name: _write_adapter(source, folder / ADAPTERS / source.name) for source in loras}
    if prompts:
        facts["virtual_tokens"] = {source.name: _write_prompt(source, folder / PROMPTS) for source in prompts}
        (folder / EMBEDDINGS).write_text(json.dumps(_embedding_of(first)) + "\n", encoding="utf-8")
        (folder / ASK.name).write_text(ASK.text(), encoding="utf-8")
    rank = max([rank_of(folder / ADAPTERS / source.name) for source in loras], default=0)
    flags = lora_flags({}, rank, min(AT_ONCE, len(loras))) if loras else []
    handed = Handed(base_id(sources, merged), tuple(s.name for s in loras), tuple(s.name for s in prompts), tuple(flags))
    for file in (SERVE, REQUIREMENTS, README):
        path = folder / file.name
        path.write_text(file.text(handed), encoding="utf-8")
    (folder / SERVE.name).chmod(0o755)
    return facts


def base_id(sources: Sequence[Source], merged: bool) -> str:
    """What the model itself is asked for as: a merged run by its own name, a base by its hub id, or its folder's name."""
    first = sources[0]
    if merged:
        return first.name
    path = Path(first.base_name)
    name = path.name if path.is_absolute() else first.base_name
    return f"{name}-base" if name in {source.name for source in sources} else name


def _write_adapter(source: Source, folder: Path) -> dict[str, Any]:
    """The LoRA as it is, or the same products with one rank and one scale for all layers."""
    found = served.verdict("vllm", served.traits_of(source.tuning))
    if found.how == "as it is":
        copy_adapter(source, folder, source.base_name)
    else:
        assert source.adapter is not None
        skeleton = loading.skeleton(loading.load_config(source.base))
        laid = even(layout.fit(layout.read(source.adapter), skeleton, device="cpu"), skeleton)
        layout.write(folder, skeleton, laid, source.base_name)
    return {"rank": rank_of(folder), "laid_out": found.how}


@torch.no_grad()
def _write_prompt(source: Source, folder: Path) -> int:
    """The table [P, C] in fp32; how many there are."""
    assert source.adapter is not None
    table_PC = layout.read(source.adapter).tensors["table"].float().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"virtual_tokens": table_PC}, folder / f"{source.name}.safetensors", metadata={"format": "pt"})
    return len(table_PC)


def _embedding_of(source: Source) -> dict[str, Any]:
    """Where a client finds the rows of the prompt's tokens, and by what the class multiplies them."""
    model = loading.skeleton(loading.load_config(source.base))
    embedding = model.get_input_embeddings()
    path = next(path for path, module in model.named_modules() if module is embedding)
    files = tensor_files(source.base)
    key = name_in(files, path, model.base_model_prefix)
    assert key is not None, f"{source.base} has no embedding"
    scale = getattr(embedding, "scalar_embed_scale", None) or 1.0
    return {"file": files[key].name, "tensor": key, "scale": float(scale)}


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """vLLM is started by serve.sh; the base and each adapter answer with the tokens that they gave while they were ours.

    Raises UserError where vLLM is not there.
    """
    python, version = _vllm(options)
    merged = merges(sources, options)
    asked = [
        vllm_proof.Asked(
            source.name, truth, base_id(sources, merged) if _is_prompt(source) else source.name,
            folder / PROMPTS / f"{source.name}.safetensors" if _is_prompt(source) else None, source.renderer,
        )
        for source, truth in zip(sources, truths, strict=True)
    ]  # fmt: skip
    return vllm_proof.proof(folder, python, version, "" if merged else base_id(sources, merged), asked, tell)


def _vllm(options: Options) -> tuple[str, str]:
    """(a Python that has vLLM, vLLM's version). Raises UserError."""
    try:
        python = find_python(options.vllm_python)
        return python, version_of(python)
    except UserError as error:
        raise UserError(*error.problems, "or leave the proof out with --no-verify") from None
