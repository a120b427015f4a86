"""A folder becomes a model in memory: built on the meta device, tensors streamed into place as fp32, bf16, fp16 or NF4.

The streaming is `transformers`' own (`from_pretrained`), which knows every class and every renaming of checkpoint names;
what is ours is the NF4 storage, the order (one tensor after the other, so that the peak stays near the final size plus the
largest tensor) and the refusals before anything is read.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.errors import UserError
from tunesmith.models import nf4, score, slots

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Base:
    """A loaded base model with its tokenizer. `notes` are sentences that the user should read."""

    model: Any
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    quantized: bool
    own_attention: str  # what the class uses where it is not given ours: sdpa, or eager where it has nothing better
    notes: list[str] = field(default_factory=list)


def load_tokenizer(folder: Path) -> Any:
    """Raises UserError where the folder has no tokenizer that `transformers` can open."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be opened: {_first_line(error)}") from None


def load_config(folder: Path) -> Any:
    """Raises UserError for a folder whose architecture `transformers` does not know."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: its config.json cannot be used: {_first_line(error)}") from None


def skeleton(config: Any) -> Any:
    """The model on the meta device: shapes and paths without memory."""
    with torch.device("meta"), quiet():
        try:
            model = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            raise UserError(f"{config.model_type} is not a causal language model: {_first_line(error)}") from None
    model.tie_weights()
    return model


@dataclass(frozen=True)
class Size:
    """Bytes of a model in memory, by what decides them."""

    total_parameters: int
    weight_bytes: int
    largest_tensor_bytes: int


def size_of(model: nn.Module, dtype: torch.dtype, quantize: bool, double_quant: bool) -> Size:
    """What the weights of a skeleton will take once loaded. NF4: 4 bits and a scale of 8 (or 32) bits per 64 weights."""
    paths = {place.path for place in slots.linears(model) if nf4.fits(place.in_features)} if quantize else set()
    total = weights = largest = 0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        total += count
        if name.removesuffix(".weight") in paths:
            weights += count // 2 + count // nf4.BLOCK * (1 if double_quant else 4)
        else:
            weights += count * dtype.itemsize
        largest = max(largest, count * dtype.itemsize)
    return Size(total, weights, largest)


def too_large(name: str, needed: int, free: int, device: torch.device, cure: str) -> UserError:
    """Said before loading. `needed` and `free` are bytes."""
    return UserError(f"{name}: its weights need {needed / 1e9:.1f} GB while loading, and {free / 1e9:.1f} GB are free on {device}; {cure}")


def load(
    folder: Path,
    *,
    dtype: torch.dtype,
    quantize: bool = False,
    double_quant: bool = True,
    device: torch.device | str = "cpu",
    own_head: bool = True,
) -> Base:
    """Load a causal language model from a folder of safetensors; without its `own_head` where a task's head is used instead.

    Raises UserError for NF4 on a mixture of experts whose experts are 3-D parameters (they would stay unquantised), and for
    a checkpoint that does not hold every weight of its class.
    """
    config = load_config(folder)
    notes: list[str] = []
    arguments: dict[str, Any] = {"dtype": dtype, "config": config, "use_safetensors": True, "trust_remote_code": False}
    arguments["ignore_mismatched_sizes"] = True  # they are collected, and refused with their names
    if quantize:
        bones = skeleton(config)
        stacks = slots.experts(bones)
        if stacks:
            share = sum(s.parameters for s in stacks) / sum(p.numel() for p in bones.parameters())
            raise UserError(
                f"model.quantize: nf4 does not reach the {len(stacks)} expert stacks of this {config.model_type}, "
                f"{share:.0%} of its parameters, so it would save little; leave model.quantize at null"
            )
        places = slots.linears(bones)
        paths = tuple(place.path for place in places if nf4.fits(place.in_features))
        left = [place.path for place in places if not nf4.fits(place.in_features)]
        if left:
            notes.append(f"{len(left)} linear layers stay unquantised, their rows are not whole blocks of {nf4.BLOCK}: {left[0]} ...")
        arguments["quantization_config"] = nf4.Nf4Config(paths, double_quant)
    if str(device) != "cpu":
        arguments["device_map"] = {"": str(device)}
    with quiet(), _one_tensor_after_the_other():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded: {_first_line(error)}") from None
    model, info = loaded
    unused = set() if own_head else score.replaced(model)
    if problems := _misfits(type(model).__name__, info, unused):
        told = [f"{folder}: {problem}" for problem in problems[:20]]
        if score.is_task_class(str((config.architectures or [""])[0])):
            told.append("it holds a model with a task's head, which writes no text: take its base, or task.name=classify or tag")
        raise UserError(*told)
    model.eval()
    model.requires_grad_(False)
    model.config.use_cache = True
    own = str(model.config._attn_implementation)
    return Base(model, load_tokenizer(folder), folder, dtype, quantize, own, notes)


def _misfits(class_name: str, info: dict[str, Any], unused: set[str]) -> list[str]:
    """What the checkpoint lacks of what is used, and what has another shape there."""
    missing = [f"the checkpoint has no tensor for {key}, which {class_name} needs" for key in sorted({*info["missing_keys"]} - unused)]
    shapes = [
        f"{key} is {tuple(found)} in the checkpoint, and {class_name} needs {tuple(wanted)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    return missing + shapes


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """The model with another attention function for a while. A class that cannot change keeps its own."""
    before = model.config._attn_implementation
    with quiet():
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        with quiet():
            model.set_attn_implementation(before)


@contextmanager
def quiet() -> Iterator[None]:
    """`transformers` without its progress bars and its warnings: what matters is checked and said by us."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def _one_tensor_after_the_other() -> Iterator[None]:
    """Threads that read ahead hold many full-size tensors at once; peak memory matters more than a few seconds."""
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def stop_ids(folder: Path, config: Any) -> list[int]:
    """Every id that ends an answer, as generation_config.json (else config.json) says."""
    try:
        eos: Any = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        eos = None
    eos = eos if eos is not None else getattr(config, "eos_token_id", None)
    return [] if eos is None else list(eos) if isinstance(eos, list) else [int(eos)]
