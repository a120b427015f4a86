"""Random numbers for first values: each tensor has a stream of its own, so that it begins alike whatever else is trained."""

import zlib

import torch


def seed_of(seed: int, name: str) -> int:
    """The seed of a tensor's stream, from the run's seed and the tensor's name."""
    return seed * 1_000_003 + zlib.crc32(name.encode())


def stream(seed: int, name: str) -> torch.Generator:
    """The tensor's stream. It draws on the CPU, so that the numbers are the same whatever the device."""
    return torch.Generator().manual_seed(seed_of(seed, name))
