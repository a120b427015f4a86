"""AdamW with both moments in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), on bitsandbytes' block-wise kernels.

bitsandbytes' own optimizer runs on GPUs only and keeps its states where it likes; its quantiser runs everywhere. Here the
moments are dequantised, moved and quantised again some millions of numbers at a time, on a CPU as on a GPU: only as many stand
in fp32 at once. `paged` keeps the moments in host memory (`step/pages.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models.nf4 import kernels
from tunesmith.step.pages import Pages
from tunesmith.step.rounding import by_chance

BLOCK = 256
SMALL = 4096  # tensors below this size keep fp32 moments, as bitsandbytes has it: their share of memory is nothing
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}  # numbers that stand in fp32 at once, whole blocks: cache on a CPU, launches on a GPU

State = dict[str, Tensor]


class Adam8bit(torch.optim.Optimizer):
    """Decoupled weight decay; moments as uint8 codes and one fp32 scale for each 256 of them."""

    def __init__(self, groups: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, pages: Pages | None = None):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.pages = pages

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.pages is not None:
            self.pages.begin()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state |= state or empty_state(parameter, self.pages)
                    update(parameter, parameter.grad, state, group, self.pages)


@dataclass(frozen=True, slots=True)
class Care:
    """What an update in the backward pass has to mind. Tensors are of the parameter's device and never waited for."""

    sound: Tensor  # a truth value: where it is false nothing but the count of steps moves
    factor: Tensor | None  # on the gradient, to clip it
    chance: torch.Generator | None  # by which a bf16 tensor is rounded


def empty_state(parameter: Tensor, pages: Pages | None = None, least: int = SMALL) -> State:
    """Moments of zero, in fp32 for tensors below `least` numbers, and a step of zero on the host."""
    if parameter.numel() < least:
        moments = {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("first", "second")}
    else:
        moments = {}
        for name in ("first", "second"):
            moments[f"{name}_codes"] = torch.zeros_like(parameter, dtype=torch.uint8, memory_format=torch.contiguous_format)
            moments[f"{name}_scales"] = torch.zeros(-(-parameter.numel() // BLOCK), device=parameter.device)
        if pages is not None:
            moments = {key: pages.page(value) for key, value in moments.items()}
    return {"step": torch.zeros(()), **moments}


def update(
    parameter: Tensor, gradient: Tensor, state: State, group: dict[str, Any], pages: Pages | None = None, care: Care | None = None
) -> None:
    """One step of one tensor, in place. `group` gives lr, betas, eps and weight_decay; `state` is that of `empty_state`."""
    state["step"] += 1
    kept: State = {key: value for key, value in state.items() if key != "step"}
    paged = pages if "first_codes" in kept else None
    moments = kept if paged is None else paged.fetch(parameter, kept)
    move(parameter.detach(), gradient, moments, float(state["step"]), group, care)
    if paged is not None:
        paged.store(parameter, moments, kept)


def move(
    parameter: Tensor,
    gradient: Tensor,
    moments: State,
    steps: float,
    group: dict[str, Any],
    care: Care | None = None,
) -> None:
    """A chunk at a time."""
    if not parameter.is_contiguous():  # a view into something larger
        copied = parameter.contiguous()
        move(copied, gradient, moments, steps, group, care)
        parameter.copy_(copied)
        return
    values, slopes = parameter.view(-1), gradient.reshape(-1)
    size = CHUNK.get(parameter.device.type, CHUNK["cpu"])
    for begin in range(0, len(values), size):
        end = min(begin + size, len(values))
        here = {key: _part(key, value, begin, end) for key, value in moments.items()}
        _move(values[begin:end], slopes[begin:end], here, steps, group, care)


def _move(value: Tensor, gradient: Tensor, moments: State, steps: float, group: dict[str, Any], care: Care | None) -> None:
    (beta1, beta2), gradient = group["betas"], gradient.float()
    if care is not None and care.factor is not None:
        gradient = gradient * care.factor
    first = _get(moments, "first", signed=True).lerp_(gradient, 1 - beta1)
    second = _get(moments, "second", signed=False).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (second / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    moved = value.float() * (1 - group["lr"] * group["weight_decay"])
    moved.addcdiv_(first, scale, value=-group["lr"] / (1 - beta1**steps))
    if value.dtype == torch.bfloat16 and care is not None and care.chance is not None:
        moved = by_chance(moved, care.chance)
    sound = None if care is None else care.sound
    _keep(value, moved, sound)
    for name, moment, signed in (("first", first, True), ("second", second, False)):
        _put(moments, name, moment, signed, sound)


def _keep(old: Tensor, new: Tensor, sound: Tensor | None) -> None:
    old.copy_(new if sound is None else torch.where(sound, new.to(old.dtype), old))


def _part(key: str, value: Tensor, begin: int, end: int) -> Tensor:
    flat = value.view(-1)
    return flat[begin // BLOCK : -(-end // BLOCK)] if key.endswith("_scales") else flat[begin:end]


_MAPS: dict[tuple[bool, torch.device], Tensor] = {}


def _map(signed: bool, device: torch.device) -> Tensor:
    if (signed, device) not in _MAPS:
        _MAPS[signed, device] = kernels().create_dynamic_map(signed=signed).to(device)
    return _MAPS[signed, device]


def _put(moments: State, name: str, value: Tensor, signed: bool, sound: Tensor | None) -> None:
    if name in moments:
        _keep(moments[name], value, sound)
        return
    codes, quantized = kernels().quantize_blockwise(value, code=_map(signed, value.device), blocksize=BLOCK)
    _keep(moments[f"{name}_codes"], codes, sound)
    _keep(moments[f"{name}_scales"], quantized.absmax, sound)


def _get(moments: State, name: str, signed: bool) -> Tensor:
    """A moment in fp32, a copy."""
    if name in moments:
        return moments[name].clone()
    codes, scales = moments[f"{name}_codes"], moments[f"{name}_scales"]
    code = _map(signed, codes.device)  # first: it loads the library that brings the operator
    return torch.ops.bitsandbytes.dequantize_blockwise(codes, scales, code, BLOCK, torch.float32)
