"""A model folder's linear layers in 4 bits, as `transformers` reads what bitsandbytes wrote: NF4 codes, 8-bit scales, and beside each
matrix what decodes it. Tensor by tensor: peak memory is one file and one matrix."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tunesmith.errors import UserError
from tunesmith.export.folder import right_index
from tunesmith.models import load as loading
from tunesmith.models import nf4, slots
from tunesmith.models.matrix import INDEX, SINGLE, name_in, tensor_files


def check(folder: Path) -> None:
    """Raises UserError for a model whose layers bitsandbytes does not keep as its own checkpoint names them."""
    bones = loading.skeleton(loading.load_config(folder))
    if slots.experts(bones):
        raise UserError(
            f"--quantize nf4: the expert stacks of this {bones.config.model_type} would stay as they are; export it unquantised"
        )
    if any(place.transposed for place in slots.linears(bones)):
        raise UserError(f"--quantize nf4: {bones.config.model_type} keeps its matrices transposed, which is not written here")
    if not _places(bones):
        raise UserError(f"--quantize nf4: no layer of this model has rows of whole blocks of {nf4.BLOCK}; export it unquantised")


def quantise(folder: Path) -> dict[str, Any]:
    """Rewrite the weights of a folder; figures."""
    bones = loading.skeleton(loading.load_config(folder))
    files = tensor_files(folder)
    chosen = {name_in(files, path, bones.base_model_prefix) for path in _places(bones)}
    before = sum(path.stat().st_size for path in set(files.values()))
    weight_map: dict[str, str] = {}
    dtype = torch.float32
    for file in sorted(set(files.values())):
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as content:
            for key in content.keys():  # noqa: SIM118  not a dictionary
                tensor = content.get_tensor(key)
                if key in chosen:
                    dtype = tensor.dtype
                    tensors |= _coded(key, tensor)
                else:
                    tensors[key] = tensor
        weight_map |= dict.fromkeys(tensors, file.name)
        aside = file.with_suffix(".new")  # what is read may still be mapped
        save_file(tensors, aside, metadata={"format": "pt"})
        os.replace(aside, file)
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8")) | {"weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        right_index(folder)
    assert set(weight_map.values()) <= {path.name for path in folder.iterdir()} | {SINGLE}
    _name(folder, _skipped(bones), dtype)
    after = sum((folder / name).stat().st_size for name in set(weight_map.values()))
    return {"quantised_tensors": len(chosen), "bytes_unquantised": before, "bytes": after}


def _coded(key: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    import bitsandbytes.functional as kernels

    codes, state = kernels.quantize_4bit(weight.contiguous(), blocksize=nf4.BLOCK, quant_type="nf4", compress_statistics=True)
    return {key: codes} | {f"{key}.{name}": tensor.clone() for name, tensor in state.as_dict(packed=True).items()}


def _places(bones: Any) -> list[str]:
    return [place.path for place in slots.linears(bones) if nf4.fits(place.in_features)]


def _skipped(bones: Any) -> list[str]:
    """Linear layers that stay as they are, the head among them."""
    chosen = set(_places(bones))
    return [path for path, module in bones.named_modules() if isinstance(module, torch.nn.Linear) and path not in chosen]


def _name(folder: Path, skipped: list[str], dtype: torch.dtype) -> None:
    """config.json says how it was quantised."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": skipped,
        "_load_in_4bit": True,
        "_load_in_8bit": False,
    }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compute_in_fp32(model: Any) -> None:
    """Let a model that `transformers` loaded compute as it is compared: of a checkpoint in 4 bits it keeps the other tensors' own dtype
    whatever it is asked for, and would round at every layer."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
            module.support_avx512bf16_for_cpu = False  # a layout for products in bf16


@torch.no_grad()
def round_in_memory(model: Any, folder: Path) -> None:
    """Put in place of a model's matrices what NF4 leaves of them, each from the dtype that its checkpoint in `folder` keeps."""
    files = tensor_files(folder)
    for path in _places(model):
        name = name_in(files, path, model.base_model_prefix)
        assert name is not None
        with safe_open(files[name], framework="pt") as content:
            stored = loading_dtype(content.get_slice(name).get_dtype())
        weight = model.get_submodule(path).weight
        weight.copy_(nf4.rounded(weight.to(stored), True, torch.float32))  # decoded in the dtype of what is multiplied


def loading_dtype(name: str) -> torch.dtype:
    """torch's dtype by safetensors' word for it."""
    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
