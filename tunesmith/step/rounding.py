"""Rounding fp32 to bfloat16 by chance, so that small steps are not lost where there is no fp32 master.

A bf16 number has 8 significant bits: an update below 1/512 of the weight rounds to nothing, every time. Rounded up with the
probability that the lost bits stand for, the weight is right on average (Gupta et al. 2015, arXiv:1502.02551).
"""

import hashlib

import torch
from torch import Tensor

_LOST = 0xFFFF  # bits of an fp32 number that bf16 does not have


def noise(seed: int, step: int, name: str, device: torch.device) -> torch.Generator:
    """The stream of chance for one tensor in one step: a function of these alone, so that a resumed run draws it again."""
    digest = hashlib.sha256(f"{seed} {step} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def by_chance(x: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 to bf16, up or down with the probability of the distance. What is not finite stays so."""
    bits = x.contiguous().view(torch.int32)
    drawn = torch.randint(0, _LOST + 1, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    raised = torch.where(torch.isfinite(x), bits + drawn, bits | (torch.isnan(x).int() << 22))  # a NaN in lost bits alone stays one
    return (raised & ~_LOST).view(torch.float32).to(torch.bfloat16)
