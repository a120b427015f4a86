"""What other engines are handed at the start of `tunesmith serve`: a base and adapters as they read them, made once and kept in the cache.

Nothing is merged here: one base stays one base, and what an engine cannot put beside it is refused with what can be done.
"""

import hashlib
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.export import served
from tunesmith.export.even import even
from tunesmith.export.gguf import DEFAULT, KINDS
from tunesmith.export.gguf.lora_file import write_lora
from tunesmith.export.gguf.model_file import write_model
from tunesmith.export.target import Tell
from tunesmith.methods.layouts import layout
from tunesmith.models import load as loading
from tunesmith.models.source import cache_folder, once

FORMAT = 1  # raised when what is written changes, so that the cache makes it anew


def base_gguf(folder: Path, kind: str | None, tell: Tell) -> Path:
    """The model as one GGUF file. Raises UserError for a family or a kind that there is not."""
    kind = kind or DEFAULT
    if kind not in KINDS:
        raise UserError(f"--quantize {kind}: llama.cpp's are {', '.join(KINDS)}")

    def build(aside: Path) -> Path:
        tell(f"writing {folder.name} as GGUF, {kind} (once)")
        write_model(folder, aside / "model.gguf", kind, tell)
        return aside

    return once(_place(folder, "gguf", kind), build) / "model.gguf"


def adapter_gguf(adapter: Path, base: Path) -> Path:
    """A LoRA as a GGUF file beside its base's. Raises UserError for what llama.cpp cannot put beside a base."""
    _refuse_unless_beside("llamacpp", adapter, base)

    def build(aside: Path) -> Path:
        write_lora(adapter, base, aside / "adapter.gguf")
        return aside

    return once(_place(adapter, "gguf", ""), build) / "adapter.gguf"


def adapter_for_vllm(adapter: Path, base: Path) -> Path:
    """A LoRA's folder that vLLM takes: its own, or the same product laid out anew. Raises UserError."""
    if _refuse_unless_beside("vllm", adapter, base) == "as it is":
        return adapter

    def build(aside: Path) -> Path:
        skeleton = loading.skeleton(loading.load_config(base))
        laid = even(layout.fit(layout.read(adapter), skeleton, device="cpu"), skeleton)
        layout.write(aside, skeleton, laid, str(base))
        return aside

    return once(_place(adapter, "vllm", ""), build)


def _refuse_unless_beside(server: str, adapter: Path, base: Path) -> served.How:
    skeleton = loading.skeleton(loading.load_config(base))
    found = served.verdict(server, served.traits_of(layout.fit(layout.read(adapter), skeleton, device="meta")))
    if found.how not in ("as it is", "rewritten"):
        raise UserError(
            f"{adapter}: {'; '.join(found.reasons)}",
            "serve it with --engine builtin, or export it first (tunesmith export DIR --to peft --as lora, or a merged model)",
        )
    return found.how


def _place(folder: Path, what: str, kind: str) -> Path:
    """A folder of the cache that belongs to these files as they are now."""
    stamps: list[Any] = [FORMAT, kind, str(folder.resolve())]
    stamps += [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir()) if path.is_file()]
    key = hashlib.sha256(repr(stamps).encode()).hexdigest()[:24]
    return cache_folder() / what / f"{folder.resolve().name[:40]}-{key}"
