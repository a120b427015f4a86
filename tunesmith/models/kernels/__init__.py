"""Kernels for NVIDIA GPUs, written in Triton: one file a kernel, each with plain functions over tensors and no state.

Triton comes with the CUDA builds of torch. Nothing here imports it: whoever wants a kernel asks `available` first, then imports
its file. Every kernel is tried against a plain reference through Triton's interpreter, which runs on a CPU, and compiled for
real GPUs, which needs none (`tests/models/kernels`).
"""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

KERNELS = {
    "cross_entropy": "the loss of a chunk of logits, whose gradient takes their place",
    "gated": "act(gate)·up of a gated MLP, forward and backward",
    "nf4": "4-bit codes and nested scales to a matrix, in one launch",
    "rms_norm": "RMSNorm, forward and backward",
    "rotary": "rotary embedding of queries and keys, forward and backward",
}


def available(device: torch.device | str) -> bool:
    """Whether kernels can run on tensors of this device: a GPU of NVIDIA's or AMD's, and Triton installed. Never on a CPU."""
    return torch.device(device).type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
