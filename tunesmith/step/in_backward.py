"""The optimizer inside the backward pass: a tensor is moved as soon as its gradient is whole, and the gradient is dropped.

Full tuning needs a gradient as large as the model otherwise. Here no two of them stand at once (but that of the head, which our
loss makes before the backward pass begins: it is moved first, or, where it is the embedding too, last). What that costs:

- a step is one backward pass: gradients of several rows cannot be added up;
- the norm of all gradients is not known before the first of them is used: each tensor's own is clipped;
- a step whose loss turns out not to be finite cannot be left out as a whole: tensors whose gradient is not finite stay.

A bf16 tensor has no fp32 master: the new value is made in fp32 and rounded to bf16 by chance (`step/rounding.py`), drawn from
seed, step and name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.step import adam8bit
from tunesmith.step.adam8bit import Care
from tunesmith.step.optim import BETAS, EPSILON, fill, pages
from tunesmith.step.rounding import noise

ALL_FP32 = 1 << 62  # `adam8bit.empty_state(least=...)`: every tensor's moments in fp32


class InBackward:
    """AdamW over `{name: parameter}`, with the interface of `Optimizer`."""

    undoes = False

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        kind: str,
        *,
        weight_decay: float,
        ratios: Mapping[str, float],
        clip: float,
        seed: int,
        tied_head: str | None = None,
    ):
        """`tied_head` is the tensor whose gradient comes from the loss (`gradient_of`) and from the backward pass both."""
        self.parameters, self.ratios, self.kind = dict(parameters), dict(ratios), kind
        self.seed, self.tied_head, self._largest = seed, tied_head, clip
        self._group: dict[str, Any] = {"betas": BETAS, "eps": EPSILON, "weight_decay": weight_decay}
        self._pages = pages(kind, next(iter(self.parameters.values())).device)
        self._states: dict[str, dict[str, Tensor]] = {}
        self._from_loss: dict[str, Tensor] = {}
        self._squares: list[Tensor] = []
        self._step: tuple[int, float] | None = None  # number and rate of the step that is under way
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(self._arrived(name))

    def begin(self, step: int, learning_rate: float) -> None:
        """From now on until `step` or `forget` gradients move their tensors; at other times they are left alone."""
        self._step = step, learning_rate
        self._squares.clear()
        self._from_loss.clear()
        if self._pages is not None:
            self._pages.begin()

    def gather(self) -> None:
        """Nothing is left to gather."""

    def gradient_of(self, name: str) -> Tensor:
        """Where the loss adds up the head's gradient in fp32."""
        if name not in self._from_loss:
            self._from_loss[name] = torch.zeros_like(self.parameters[name], dtype=torch.float32)
        return self._from_loss[name]

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """The norm of all gradients as they were before each was clipped. What the backward pass did not reach is moved now."""
        for name in list(self._from_loss):
            self._move(name, self._from_loss.pop(name))
        if not self._squares:
            return torch.zeros(())
        return torch.stack(self._squares).sum().sqrt()

    def step(self, learning_rate: float) -> None:
        self.forget()

    def forget(self) -> None:
        self._step = None
        self._from_loss.clear()
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything but the parameters themselves, by `name.part`."""
        if self._pages is not None:
            self._pages.settle()
        return {f"{name}.{part}": value for name in self.parameters for part, value in self._states.get(name, {}).items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a state back. Raises UserError for a misfit."""
        self._states = {name: self._empty(p) for name, p in self.parameters.items() if f"{name}.step" in tensors}
        fill(self.state(), tensors)

    def _arrived(self, name: str) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def arrived(parameter: Tensor) -> None:
            if self._step is None or parameter.grad is None:
                return
            gradient, parameter.grad = parameter.grad, None
            for other in [other for other in self._from_loss if other not in (name, self.tied_head)]:
                self._move(other, self._from_loss.pop(other))  # the backward pass has begun: the loss has made all of it
            if name in self._from_loss:
                gradient = self._from_loss.pop(name).add_(gradient)
            self._move(name, gradient)

        return arrived

    def _move(self, name: str, gradient: Tensor) -> None:
        assert self._step is not None, "a gradient came before its step was begun"
        number, rate = self._step
        parameter = self.parameters[name]
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        self._squares.append(norm.square())
        factor = (self._largest / (norm + 1e-6)).clamp(max=1.0) if self._largest > 0 else None
        group = self._group | {"lr": rate * self.ratios.get(name, 1.0)}
        state = self._states.setdefault(name, {})
        state |= state or self._empty(parameter)
        if "exp_avg" in state:
            _fused(parameter, gradient if factor is None else gradient.mul_(factor), state, group, torch.isfinite(norm))
        else:
            chance = noise(self.seed, number, name, parameter.device) if parameter.dtype == torch.bfloat16 else None
            adam8bit.update(parameter, gradient, state, group, self._pages, Care(torch.isfinite(norm), factor, chance))
        torch.autograd.graph.increment_version(parameter)  # neither writes through autograd: caches go by versions

    def _empty(self, parameter: Tensor) -> dict[str, Tensor]:
        if self.kind != "adamw":
            return adam8bit.empty_state(parameter, self._pages)
        if parameter.dtype != torch.float32 or parameter.device.type not in ("cpu", "cuda"):
            return adam8bit.empty_state(parameter, least=ALL_FP32)
        moments = {part: torch.zeros_like(parameter, memory_format=torch.preserve_format) for part in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device), **moments}


def _fused(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], sound: Tensor) -> None:
    """The operator that `torch.optim.AdamW(fused=True)` calls for all tensors, for one: the same bits."""
    state["step"] += 1
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        [parameter], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
        lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, grad_scale=None, found_inf=(~sound).float(),
    )  # fmt: skip
