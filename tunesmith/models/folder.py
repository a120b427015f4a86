"""Is this folder a causal language model that can be opened without running anything in it? Asked before loading, in
milliseconds: only config.json, indexes and the heads of safetensors files are read."""

import json
import struct
from pathlib import Path
from typing import Any

_PICKLE = "a pickle: opening it can run any program that its maker put there, so it is never opened"
PICKLES = {".bin": _PICKLE, ".pt": _PICKLE, ".pth": _PICKLE, ".ckpt": _PICKLE, ".pkl": _PICKLE}
HEADED = ("ForSequenceClassification", "ForTokenClassification")
TOKENIZERS = ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json", "tokenizer_config.json"]
CONVERT = (
    "convert it where you trust its source, with transformers: "
    "AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER), and copy the tokenizer's files"
)


def check_folder(folder: Path, headed: bool = False) -> list[str]:
    """Every problem of a model folder, one sentence each; an empty list where it is good. `headed`: it may classify or tag."""
    path = folder / "config.json"
    if not path.is_file():
        return [_what_else(folder)]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return [f"{path}: not valid JSON: {error}"]
    return _architecture(path, config, headed) + _weights(folder) + _tokenizer(folder)


def _what_else(folder: Path) -> str:
    """What a folder without config.json is, in one sentence."""
    if (folder / "adapter_config.json").is_file():
        return f"{folder}: an adapter, not a whole model; name its base as model.source and this folder as model.adapter"
    if (folder / "run.yaml").is_file():
        return f"{folder}: a run folder; to go on from it pass model.adapter={folder}, or {folder / 'model'} after full tuning"
    ggufs = sorted(entry.name for entry in folder.glob("*.gguf"))
    if ggufs:
        return f"{folder}: no config.json; pass one of its GGUF files: {', '.join(str(folder / name) for name in ggufs[:5])}"
    inner = sorted(entry.parent.name for entry in folder.glob("*/config.json"))
    if inner:
        return f"{folder}: no config.json; did you mean {' or '.join(str(folder / name) for name in inner[:5])}?"
    return f"{folder}: not a model: it has no config.json"


def _architecture(path: Path, config: dict[str, Any], headed: bool) -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.get("model_type")
    if not kind:
        return [f"{path}: no model_type, so it cannot be told what model this is"]
    if kind not in CONFIG_MAPPING_NAMES:
        if remote := config.get("auto_map"):
            files = sorted({str(value).partition(".")[0].rpartition("--")[2] + ".py" for value in remote.values()})
            return [
                f"{path}: {kind} needs Python code that comes with the model ({', '.join(files)}); running it would give its maker "
                "this machine, so it is refused; look for a version of the model that transformers has a class for"
            ]
        return [f"{path}: the installed transformers has no class for model_type {kind!r}; a newer one may: pip install -U transformers"]
    named = [str(name) for name in config.get("architectures") or []]
    known = {name for value in CAUSAL.values() for name in ([value] if isinstance(value, str) else value)}
    if kind not in CAUSAL or config.get("is_encoder_decoder"):
        return [f"{path}: {named[0] if named else kind} is not a causal language model; choose one that continues text"]
    endings = ("ForCausalLM", "LMHeadModel") + (HEADED if headed else ())
    if named and not any(name in known or name.endswith(endings) for name in named):
        return [f"{path}: holds {named[0]}, which has no head for the next token; choose the {kind} checkpoint of a causal language model"]
    return []


def _weights(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{index}: not a safetensors index; fetch it again"]
        if outside := [name for name in files if Path(name).name != name]:
            return [f"{index}: names files outside of the folder: {', '.join(outside)}"]
        missing = [name for name in files if not (folder / name).is_file()]
        problems = (
            [f"{folder}: {len(missing)} of {len(files)} weight files are missing: {', '.join(missing)}; fetch them"] if missing else []
        )
        return problems + [problem for name in files if name not in missing for problem in check_safetensors(folder / name)]
    if (folder / "model.safetensors").is_file():
        return check_safetensors(folder / "model.safetensors")
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
    if pickles:
        shown = ", ".join(pickles[:3]) + (" ..." if len(pickles) > 3 else "")
        return [f"{folder}: its weights are only there as {shown}, {_PICKLE}", CONVERT]
    loose = sorted(entry.name for entry in folder.glob("*.safetensors"))
    if loose:
        return [
            f"{folder}: {loose[0]} has another name than model.safetensors, and there is no model.safetensors.index.json: fetch the index"
        ]
    return [
        f"{folder}: no weights: neither model.safetensors nor model.safetensors.index.json (pickle checkpoints are not fetched from a hub)"
    ]


def check_safetensors(path: Path) -> list[str]:
    """Whether a file is as long as its own head says: catches downloads cut short and pointers of Git LFS."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            return [f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in that folder"]
        (length,) = struct.unpack("<Q", start[:8].ljust(8, b"\0"))
        if not 2 <= length <= size - 8:
            return [f"{path}: not a safetensors file, or cut short ({size:,} bytes); fetch it again"]
        file.seek(8)
        try:
            tensors = json.loads(file.read(length))
            end = max([entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"], default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"{path}: its head is damaged; fetch it again"]
    if size != 8 + length + end:
        return [f"{path}: {size:,} bytes long, and should be {8 + length + end:,}: fetch it again"]
    return []


def _tokenizer(folder: Path) -> list[str]:
    if any((folder / name).is_file() for name in TOKENIZERS):
        return []
    return [f"{folder}: no tokenizer ({', '.join(TOKENIZERS[:3])} ...); copy the files of the model's tokenizer into it"]
