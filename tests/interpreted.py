"""GPU kernels without a GPU: through Triton's interpreter, value by value on the CPU. Where there is a GPU they run compiled.

Import this before any file of `tunesmith/models/kernels`.
"""

import os

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's file is imported


@pytest.fixture(autouse=True)
def rounds_to_even(monkeypatch):
    """The interpreter cuts fp32 to bf16; a GPU rounds to the nearest, ties to even, as torch does."""
    if not INTERPRETED:
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton comes with CUDA builds of torch")
    tl, plain = interpreter.tl, interpreter.InterpreterBuilder.cast_impl

    def rounded(self, source, kind):
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return plain(self, source, kind)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(bits, kind.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounded)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")
