"""The optimizer over named tensors: fp32 masters, gradient sums, clipping, schedules, and a state that is plain tensors.

Whatever the model's dtype, gradients of several rows are added up in fp32 and the update is made in fp32: a trained tensor
that is not fp32 (full tuning in bf16) has a master copy, from which it is rounded after each step.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.step.adam8bit import Adam8bit
from tunesmith.step.host_store import CudaCopies
from tunesmith.step.pages import Pages

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over `{name: parameter}`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str, *, weight_decay: float, ratios: Mapping[str, float]):
        self.parameters = dict(parameters)
        self.masters = {n: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for n, p in self.parameters.items()}
        self.ratios = dict(ratios)
        groups: dict[float, list[Tensor]] = {}
        for name, master in self.masters.items():
            groups.setdefault(self.ratios.get(name, 1.0), []).append(master)
        self.kind = kind
        self._inner = _make(kind, [{"params": tensors, "ratio": ratio} for ratio, tensors in groups.items()], weight_decay)

    undoes = True  # a step whose loss is not finite can still be left out once that is known

    def begin(self, step: int, learning_rate: float) -> None:
        """A step's backward passes are going to begin: nothing is moved before `step`."""

    def gather(self) -> None:
        """After each backward pass: move gradients of masters' tensors over, adding in fp32."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter and parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad += parameter.grad
                parameter.grad = None

    def gradient_of(self, name: str) -> Tensor:
        """The fp32 sum of gradients of one tensor, made where there is none yet."""
        master = self.masters[name]
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def clip(self, largest: float) -> Tensor:
        """The gradient norm before clipping, as a tensor: nothing waits for the device here."""
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        if not gradients:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))  # type: ignore[arg-type]
        if largest > 0:
            factor = (largest / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, learning_rate: float) -> None:
        for group in self._inner.param_groups:
            group["lr"] = learning_rate * group["ratio"]
        self._inner.step()
        torch.autograd.graph.increment_version(list(self.masters.values()))  # the fused step does not: caches go by versions
        self.forget()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])

    def forget(self) -> None:
        """Drop the gradients."""
        for name, parameter in self.parameters.items():
            self.masters[name].grad = None
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Everything but the parameters themselves, by `name.part`; masters too, where they are copies.

        A tensor that never had a gradient (an encoder for pictures, say) has no moments.
        """
        if (pages := getattr(self._inner, "pages", None)) is not None:
            pages.settle()
        tensors = {}
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                tensors[f"{name}.master"] = master.detach()
            for part, value in self._inner.state.get(master, {}).items():
                tensors[f"{name}.{part}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a state back, into tensors as an undisturbed run would have allocated them. Raises UserError for a misfit."""
        self._allocate([name for name in self.masters if f"{name}.step" in tensors])
        fill(self.state(), tensors)
        for name, master in self.masters.items():
            state = self._inner.state.get(master, {})
            state |= {part: type(value)(tensors[f"{name}.{part}"].item()) for part, value in state.items() if not isinstance(value, Tensor)}
            if master is not self.parameters[name]:
                self.parameters[name].copy_(master)

    def _allocate(self, names: list[str]) -> None:
        """Let the optimizer make the state of these tensors as its first step would: a step at rate 0 leaves the tensors as they are."""
        for name in names:
            self.masters[name].grad = torch.zeros_like(self.masters[name])
        self.step(0.0)


def fill(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy kept values into an optimizer's state. Raises UserError with every misfit."""
    problems = [f"optimizer state has no {name}" for name in wanted if name not in tensors]
    problems += [f"optimizer state has an unknown {name}" for name in tensors if name not in wanted]
    if problems:
        raise UserError(*problems[:20])
    for name, value in wanted.items():
        value.copy_(tensors[name])


def _make(kind: str, groups: list[dict[str, Any]], weight_decay: float) -> Any:
    device = groups[0]["params"][0].device
    common: dict[str, Any] = {"lr": 0.0, "betas": BETAS, "eps": EPSILON, "weight_decay": weight_decay}
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"), **common)
    return Adam8bit(groups, **common, pages=pages(kind, device))


def pages(kind: str, device: torch.device) -> Pages | None:
    """Where the paged kind keeps its states; None for other kinds. Raises UserError where there is nothing to page between."""
    if kind != "paged_adamw_8bit":
        return None
    if device.type != "cuda":
        raise UserError("train.optimizer: paged_adamw_8bit needs a GPU to page between it and the host; take adamw_8bit or adamw on a CPU")
    return Pages(CudaCopies(device), device)


def learning_rate(step: int, total: int, peak: float, schedule: str, warmup: float) -> float:
    """The rate of optimizer step `step` (0 is the first): linear warm-up, then to zero at `total` by the schedule's shape."""
    rising = round(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    share = (step - rising) / max(1, total - rising)
    return peak * {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}[schedule]
