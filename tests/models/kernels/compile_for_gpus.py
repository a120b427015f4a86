"""Compile every launch of every kernel for real GPUs, without one: prints a line of JSON for each launch.

Run as a program of its own, since Triton decides at import whether kernels are interpreted. The host functions are called as they
are; where they would launch, the compiler runs as it would on that GPU, down to the machine code of `ptxas`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton_cache_")

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.models.kernels.launches import LAUNCHES


class AbsentGpu:
    """What the launcher asks a driver for."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, bytes of memory it spills to, and machine instructions of the whole kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{name}:(\d+)", text)[0]) for name in ("REG", "STACK"))
    return {"registers": registers, "spilled_bytes": stack, "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/ +\S", text))}


def compile_only(launch: Callable[..., Any], name: str) -> Callable[..., Any]:
    """In place of a launch: compile, and print what came of it."""

    def compiled(function: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(function, *arguments, grid=grid, warmup=True, **options)
        facts = {
            "launch": name,
            "function": function.fn.__name__,
            "grid": list(grid),
            "warps": kernel.metadata.num_warps,
            "shared_bytes": kernel.metadata.shared,
            "fused_products": kernel.asm["ptx"].count("fma.rn"),
            **resources(kernel.asm["cubin"]),
        }
        print(json.dumps(facts), flush=True)
        return kernel

    return compiled


def main(capability: int) -> None:
    driver.set_active(AbsentGpu(capability))
    launch = JITFunction.run
    for name, call in LAUNCHES.items():
        JITFunction.run = compile_only(launch, name)
        call(torch.device("cpu"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
