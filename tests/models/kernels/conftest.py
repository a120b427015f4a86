"""Every test here runs kernels, interpreted or on a GPU."""

from tests.interpreted import device, rounds_to_even

__all__ = ["device", "rounds_to_even"]
