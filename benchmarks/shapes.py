"""Models of random weights in the shapes of known ones, written once as sharded safetensors below build/bench/models.

A training step takes as long with random weights as with learned ones, and no hub is needed. The tokenizer is that of the built-in
model, whose words are fewer than the shapes have rows for.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from measure import MODEL, WORK
from safetensors.torch import load_file, save_file

from tunesmith.models.source import locate

SHARD_BYTES = 4 * 1000**3
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")

_LLAMA_3: dict[str, Any] = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
_LONG: dict[str, Any] = {"max_position_embeddings": 131072}
# name -> class of the configuration, its values
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": ("LlamaConfig", _LLAMA_3 | _LONG | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    }),
    "llama-3.2-1b": ("LlamaConfig", _LLAMA_3 | _LONG | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "tie_word_embeddings": True,
    }),
    "llama-3.3-70b": ("LlamaConfig", _LLAMA_3 | _LONG | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    }),
    "qwen3-8b": ("Qwen3Config", _LONG | {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
    }),
    "smollm2-135m": ("LlamaConfig", {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }),
    "tiny": ("LlamaConfig", {
        "vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    }),
}  # fmt: skip
FLOAT32 = {"tiny"}  # the others are written in bfloat16


def made(name: str, folder: Path | None = None) -> Path:
    """The model's folder. Raises SystemExit where the disk has no room for it."""
    import transformers

    from tunesmith.models.load import skeleton

    folder = folder or WORK / "models" / name
    if (folder / "model.safetensors.index.json").exists():
        return folder
    kind, values = SHAPES[name]
    source = locate(MODEL).folder
    own = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = {key: own.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, kind)(**values, **ids)
    dtype = torch.float32 if name in FLOAT32 else torch.bfloat16
    config.dtype, config.architectures = dtype, [kind.removesuffix("Config") + "ForCausalLM"]
    model = skeleton(config)
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < needed * 1.05:
        raise SystemExit(f"{name} needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    aside = folder.with_name(f"{name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    config.save_pretrained(aside)
    for file in TOKENIZER:
        if (source / file).exists():
            shutil.copy(source / file, aside / file)
    write_weights(model, dtype, aside)
    aside.rename(folder)
    return folder


def write_weights(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Normal draws of deviation 0.02, norms of one, shard by shard: no more than a shard is ever in memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    shards: list[list[str]] = [[]]
    names, held = {name: parameter.shape for name, parameter in model.named_parameters()}, 0  # a tied head appears once
    for name, shape in names.items():
        size = shape.numel() * dtype.itemsize
        if held + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name in shard:
            tensor = torch.empty(names[name], dtype=dtype, device=device)
            tensors[name] = (tensor.fill_(1.0) if tensor.ndim == 1 else tensor.normal_(0.0, 0.02, generator=generator)).cpu()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(shape.numel() for shape in names.values()) * dtype.itemsize}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def in_dtype(folder: Path, dtype: str) -> Path:
    """The model as everyone computes it. LLaMA-Factory trains in the number format that config.json names, and bfloat16 on a CPU
    that lacks its instructions is fifty times slower than float32, which would say nothing about LLaMA-Factory."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("dtype", config.get("torch_dtype")) == dtype:
        return folder
    copy = WORK / "models" / f"{folder.name}-{dtype}"
    if copy.exists():
        return copy
    aside = copy.with_name(f"{copy.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(folder, aside)
    for file in aside.glob("*.safetensors"):
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    (aside / "config.json").write_text(json.dumps(config | {"dtype": dtype, "torch_dtype": dtype}, indent=2), encoding="utf-8")
    aside.rename(copy)
    return copy
