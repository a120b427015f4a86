"""One call of every kernel for each of its kinds, at widths of a model of 8 billion parameters."""

import torch


def _rms_norm(device: torch.device, **kinds: bool) -> None:
    from tunesmith.models.kernels.rms_norm import rms_norm_backward, rms_norm_forward

    for channels in (128, 4096):
        x_NC = torch.zeros(64, channels, dtype=torch.bfloat16, device=device)
        _, rstd_N = rms_norm_forward(x_NC, x_NC[0], 1e-5, **kinds)
        for needs_weight in (False, True):
            rms_norm_backward(x_NC, x_NC, rstd_N, x_NC[0], needs_weight=needs_weight, **kinds)


def _gated(device: torch.device, kind: str) -> None:
    from tunesmith.models.kernels.gated import gated_backward, gated_forward

    both = torch.zeros(16, 2 * 14336, dtype=torch.bfloat16, device=device)
    gate, up = both.chunk(2, -1)
    gated_backward(gated_forward(gate, up, kind), gate, up, kind)


def _cross_entropy(device: torch.device, softcap: float | None, gradient: bool) -> None:
    from tunesmith.models.kernels.cross_entropy import cross_entropy_

    logits_RV = torch.zeros(4, 128256, dtype=torch.bfloat16, device=device)
    cross_entropy_(logits_RV, torch.zeros(4, dtype=torch.int64, device=device), 1.0, 1.0, softcap, gradient)


def _nf4(device: torch.device, double: bool, dtype: torch.dtype) -> None:
    from tunesmith.models.kernels.nf4 import dequantize_into

    codes, absmax = torch.zeros(512, 2048, dtype=torch.uint8, device=device), torch.zeros(512 * 64, dtype=torch.uint8, device=device)
    numbers = torch.zeros(256, device=device)
    nested = (numbers, numbers[:128], numbers[:1]) if double else ()
    dequantize_into(torch.zeros(512, 4096, dtype=dtype, device=device), codes, absmax if double else absmax.float(), numbers[:16], *nested)


def _rotary(device: torch.device, back: bool, size: int) -> None:
    from tunesmith.models.kernels.rotary import rotate

    x_BHTE = torch.zeros(1, 16, 32, 128, dtype=torch.bfloat16, device=device).transpose(1, 2)
    rotate(x_BHTE, x_BHTE[:, 0, :, :size], x_BHTE[:, 0, :, :size], back)


LAUNCHES = {
    "rms_norm, llama": lambda device: _rms_norm(device, one_plus=False, cast_first=True),
    "rms_norm, gemma": lambda device: _rms_norm(device, one_plus=True, cast_first=False),
    "gated, silu": lambda device: _gated(device, "silu"),
    "gated, gelu_tanh": lambda device: _gated(device, "gelu_tanh"),
    "gated, gelu": lambda device: _gated(device, "gelu"),
    "cross_entropy, gradient": lambda device: _cross_entropy(device, None, True),
    "cross_entropy, loss": lambda device: _cross_entropy(device, None, False),
    "cross_entropy, capped": lambda device: _cross_entropy(device, 30.0, True),
    "rotary": lambda device: _rotary(device, False, 128),
    "rotary, back": lambda device: _rotary(device, True, 128),
    "rotary, in part": lambda device: _rotary(device, False, 32),
    "nf4, bf16": lambda device: _nf4(device, True, torch.bfloat16),
    "nf4, fp32": lambda device: _nf4(device, False, torch.float32),
}
