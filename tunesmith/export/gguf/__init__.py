"""`gguf`: one file for llama.cpp and what is built on it (Ollama, LM Studio); with --adapter-only a LoRA's file beside its base's.

    model_file.write_model(folder, out, kind, tell) -> Written             a model folder of safetensors becomes one file
    lora_file.write_lora(adapter, base, out, tell) -> Written              an adapter folder becomes a file beside a model's
    opened.proof(file, kind, truth, renderer, tell, adapter=None) -> Proof     llama.cpp opens it and is compared

`quantise.KINDS` says how weights can be stored: `kind` above is one of its names.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.export.gguf.lora_file import SERVE, loras, write_lora
from tunesmith.export.gguf.model_file import Written, write_model
from tunesmith.export.gguf.names import family_of
from tunesmith.export.gguf.opened import check_openable, proof
from tunesmith.export.gguf.quantise import KINDS, check_installed
from tunesmith.export.target import Options, Proof, Source, Tell, Truth
from tunesmith.methods.method import unmergeable
from tunesmith.models import load as loading

SEVERAL = False
QUANTIZE: tuple[str, ...] = tuple(KINDS)
SERVERS = ("llamacpp",)
ADAPTER = "adapter.gguf"
DEFAULT = "f16"  # what every build of llama.cpp computes fast; bf16 where the checkpoint is bf16 loses nothing, but is slow without support
BESIDE = "f32"  # the base that a LoRA's file is proved beside: nothing is rounded


def check(sources: Sequence[Source], options: Options) -> None:
    """Raises UserError for a family that llama.cpp computes otherwise, and for what neither merges nor is a LoRA."""
    [source] = sources
    config = loading.load_config(source.base)
    family_of(config)
    if source.tuning.head is not None:
        raise UserError(f"{source.given}: it predicts labels with a head of its own, and a GGUF holds models that write; {SERVE}")
    if options.adapter_only:
        if source.adapter is None:
            raise UserError(f"{source.given} holds no adapter; leave --adapter-only out")
        if options.quantize is not None:
            raise UserError("--adapter-only writes a LoRA in f32, a few megabytes; leave --quantize out")
        loras(source.tuning, source.given)
        return
    if misfit := unmergeable(source.tuning, source.given):
        raise UserError(f"{source.given}: {misfit}")
    check_installed(_kind(options), config.hidden_size)


def can_prove(options: Options) -> None:
    """Raises UserError where llama.cpp is not on this machine."""
    check_openable()


def merges(sources: Sequence[Source], options: Options) -> bool:
    """Unless the LoRA is wanted alone."""
    return not options.adapter_only


def file_of(source: Source, options: Options) -> str:
    """The file's name: what is served, and how its weights are stored."""
    return ADAPTER if options.adapter_only else f"{source.name}-{_kind(options)}.gguf"


def write(sources: Sequence[Source], folder: Path, options: Options, tell: Tell) -> dict[str, Any]:
    """One file; a merged model stands beside the folder on the disk for a while."""
    [source] = sources
    if options.adapter_only:
        assert source.adapter is not None
        return _facts(write_lora(source.adapter, source.base, folder / ADAPTER, tell))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".merged-") as aside:
        merged = Path(aside) / source.name  # the folder's name becomes the model's in the file
        facts = source.whole.write(merged)
        return facts | _facts(write_model(merged, folder / file_of(source, options), _kind(options), tell))


def prove(sources: Sequence[Source], truths: Sequence[Truth], folder: Path, options: Options, tell: Tell) -> Proof:
    """llama.cpp opens it: token ids, distributions and greedy answers are ours. A LoRA's file is opened beside its base's."""
    [source], [truth] = sources, truths
    if not options.adapter_only:
        return proof(folder / file_of(source, options), _kind(options), truth, source.renderer, tell)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".base-") as aside:
        base = write_model(source.base, Path(aside) / "base.gguf", BESIDE, tell)
        return proof(base.file, BESIDE, truth, source.renderer, tell, adapter=folder / ADAPTER)


def _facts(written: Written) -> dict[str, Any]:
    return {
        "file": written.file.name,
        "architecture": written.architecture,
        "kind": written.kind,
        "bytes": written.bytes,
        "types": written.types,
        "differs": list(written.notes),
    }


def _kind(options: Options) -> str:
    return options.quantize or DEFAULT
