"""`tunesmith doctor`: what this machine has and what is missing, one line each with the cure."""

import argparse
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One line. `missing` keeps Tunesmith from working; `note` only limits it."""

    name: str
    state: Literal["ok", "note", "missing"]
    text: str
    cure: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of lines")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0, or 2 where something is missing without which Tunesmith cannot work."""
    found = examine()
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in found], ensure_ascii=False, indent=2))
    else:
        marks = {"ok": "ok     ", "note": "note   ", "missing": "MISSING"}
        for finding in found:
            print(f"{marks[finding.state]} {finding.name:<14} {finding.text}" + (f" -> {finding.cure}" if finding.cure else ""))
    return 2 if any(finding.state == "missing" for finding in found) else 0


def examine() -> list[Finding]:
    """Every finding, in the order in which a person would mend them. A check that fails itself is a finding too."""
    found = []
    for name, check in CHECKS.items():
        try:
            found += check()
        except Exception as error:  # a broken installation breaks in many ways, and the other lines still help
            found.append(
                Finding(name, "missing", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", "make setup")
            )
    return found


def _python() -> list[Finding]:
    return [Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]


def _libraries() -> list[Finding]:
    import torch
    import transformers

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return [Finding("torch", "ok", f"{torch.__version__} ({build})"), Finding("transformers", "ok", transformers.__version__)]


def _device() -> list[Finding]:
    import torch

    from tunesmith import hardware

    chosen = hardware.device("auto")
    if chosen.type == "cuda":
        return [Finding("device", "ok", f"{torch.cuda.get_device_name(chosen)} ({chosen}), {_gigabytes(hardware.total_memory(chosen))}")]
    cure = "install a CUDA build of torch" if shutil.which("nvidia-smi") else ""
    return [Finding("device", "note" if cure else "ok", f"{hardware.cpu_name()}: the CPU; no GPU is used", cure)]


def _cores() -> list[Finding]:
    from tunesmith import hardware

    return [Finding("cores", "ok", f"{hardware.physical_cores()} physical cores for this process")]


def _memory() -> list[Finding]:
    from tunesmith import hardware

    device = hardware.device("auto")
    free, total = hardware.free_memory(device), hardware.total_memory(device)
    text = f"{_gigabytes(free)} free of {_gigabytes(total)}"
    if free < 2 * 10**9:
        return [Finding("memory", "note", text, "close other programs; the built-in model wants about 2 GB")]
    return [Finding("memory", "ok", text)]


def _speed() -> list[Finding]:
    import torch

    from tunesmith import hardware

    device = hardware.device("auto")
    dtype, reason = hardware.default_dtype(device)
    # the shapes of a small model's MLP; enough rows for the rate to settle
    rates = {d: hardware.matmul_flops(device, d, 512, 1536, 576) for d in (torch.float32, torch.bfloat16)}
    measured = ", ".join(f"{str(d).removeprefix('torch.')} {rate / 1e9:,.0f} GFLOP/s" for d, rate in rates.items())
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    finding = Finding("matrix product", "ok", f"{measured}; auto takes {reason}")
    if rates[other] > 1.3 * rates[dtype]:
        name = str(other).removeprefix("torch.")
        finding = Finding("matrix product", "note", finding.text, f"{name} was faster here: model.dtype={name}")
    return [finding]


def _nf4() -> list[Finding]:
    import bitsandbytes.functional as kernels
    import torch

    from tunesmith import hardware

    device = hardware.device("auto")
    weights = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    codes, state = kernels.quantize_4bit(weights, blocksize=64, quant_type="nf4", compress_statistics=True)
    error = (kernels.dequantize_4bit(codes, state) - weights).abs().max().item()
    if not error < 0.2:  # the widest gap between two NF4 values is 0.30 of a block's largest
        return [
            Finding(
                "NF4", "missing", f"bitsandbytes gives wrong values back (off by {error:.2f})", "pip install --force-reinstall bitsandbytes"
            )
        ]
    import bitsandbytes

    return [Finding("NF4", "ok", f"bitsandbytes {bitsandbytes.__version__} quantises and gives back on {device}")]


def _cache() -> list[Finding]:
    import tempfile

    from tunesmith.models.source import builtin_folder, cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        room = shutil.disk_usage(folder).free
        found = [
            Finding(
                "cache", "ok" if room > 2 * 10**9 else "note", f"{folder}, {_gigabytes(room)} free", "" if room > 2 * 10**9 else "make room"
            )
        ]
    except OSError as error:
        found = [Finding("cache", "missing", f"{folder}: {error.strerror}", "set TUNESMITH_CACHE to a folder that you may write")]
    name = "smollm2-135m-instruct"
    if builtin_folder(name).is_dir():
        return [*found, Finding("built-in model", "ok", f"builtin:{name} is in the cache")]
    return [
        *found,
        Finding("built-in model", "note", f"builtin:{name} is not in the cache yet", "it is fetched when first used, or now: make setup"),
    ]


def _hub() -> list[Finding]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", "note", "HF_HUB_OFFLINE is set: only what is in the hub's cache is found", "unset HF_HUB_OFFLINE")]
    return [Finding("hub", "ok", f"{constants.ENDPOINT} (not tried; HF_ENDPOINT names a mirror)")]


def _optional() -> list[Finding]:
    from importlib.util import find_spec

    wanted = {"tensorboard": "train.tensorboard=true", "modelscope": "models named ms:owner/name"}
    return [
        Finding(package, "ok", "installed")
        if find_spec(package)
        else Finding(package, "note", f"not installed; only for {use}", f"pip install {package}")
        for package, use in wanted.items()
    ]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "python": _python,
    "libraries": _libraries,
    "device": _device,
    "cores": _cores,
    "memory": _memory,
    "matrix product": _speed,
    "NF4": _nf4,
    "cache": _cache,
    "hub": _hub,
    "optional": _optional,
}
