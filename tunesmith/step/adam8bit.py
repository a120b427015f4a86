"""AdamW with both moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), on bitsandbytes' block-wise kernels.

bitsandbytes' own optimizer runs on GPUs only; its quantiser runs everywhere. The moments are dequantised, moved and quantised
again tensor by tensor, so that only one tensor's moments stand in fp32 at a time.
"""

from typing import Any

import torch
from torch import Tensor

from tunesmith.models.nf4 import kernels

BLOCK = 256
SMALL = 4096  # tensors below this size keep fp32 moments, as bitsandbytes has it: their share of memory is nothing


class Adam8bit(torch.optim.Optimizer):
    """Decoupled weight decay; moments as uint8 codes and one fp32 scale for each 256 of them."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in ("first", "second"):
                _put(state, moment, torch.zeros_like(parameter), signed=moment == "first")
        state["step"] += 1
        (beta1, beta2), steps = group["betas"], float(state["step"])
        first = _get(state, "first", parameter, signed=True).lerp_(gradient, 1 - beta1)
        second = _get(state, "second", parameter, signed=False).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = (second / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**steps))
        _put(state, "first", first, signed=True)
        _put(state, "second", second, signed=False)


_MAPS: dict[bool, Tensor] = {}


def _map(signed: bool) -> Tensor:
    if signed not in _MAPS:
        _MAPS[signed] = kernels().create_dynamic_map(signed=signed)
    return _MAPS[signed]


def _put(state: dict[str, Any], name: str, value: Tensor, signed: bool) -> None:
    if value.numel() < SMALL:
        parts = {name: value}
    else:
        codes, quantized = kernels().quantize_blockwise(value.contiguous(), code=_map(signed), blocksize=BLOCK)
        parts = {f"{name}_codes": codes, f"{name}_scales": quantized.absmax}
    for key, part in parts.items():
        if key in state:
            state[key].copy_(part)
        else:
            state[key] = part.clone()


def _get(state: dict[str, Any], name: str, like: Tensor, signed: bool) -> Tensor:
    if like.numel() < SMALL:
        return state[name].clone()
    code = _map(signed)
    flat = torch.ops.bitsandbytes.dequantize_blockwise(state[f"{name}_codes"], state[f"{name}_scales"], code, BLOCK, torch.float32)
    return flat.view_as(like)
