"""Bottleneck adapters: two thin layers with an activation between them, added to what flows through a block.

    f(x) = s · (U·σ(D·x + d) + u)

    houlsby    h ← h + f(h)     h: what attention, and what the MLP, hands over before it is added to the stream; two a block
    pfeiffer   y ← y + f(y)     y: the stream behind the MLP's sum, which is the block's output; one a block
    parallel   h ← h + f(x)     h: the MLP's output, x: the stream that it is added to, before the norm; one a block

D [w, C] begins as in a linear layer, U [C, w], d and u as zeros: the first output is the base's, to the bit. C channels, w of the
bottleneck. Houlsby et al. 2019 (arXiv:1902.00751), Pfeiffer et al. 2020 (arXiv:2005.00247), He et al. 2021 (arXiv:2110.04366). An
adapter between layers cannot be folded into weights: it is not linear.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.methods.rates import Rates
from tunesmith.methods.settings import Adapter as Settings
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import slots, sublayers
from tunesmith.models.draws import stream
from tunesmith.models.sublayers import Sublayers

NF4 = True
LEARNING_RATES = {576: 5.9e-4}  # by channels of the model
PARALLEL_RATES = {576: 2e-5}  # half the model wide and four times as loud: a thirtieth

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_new": partial(nn.functional.gelu, approximate="tanh"),
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
# What `auto` is, by variant: activation, reduction, scale.
_AUTO = {"pfeiffer": ("relu", 16.0, 1.0), "houlsby": ("silu", 16.0, 1.0), "parallel": ("relu", 2.0, 4.0)}
# (architecture, variant) that AdapterHub's library wires otherwise than its own definition says: what each of us trains there
# would compute something else in the other's hands.
ELSEWHERE_OTHERWISE = {
    ("gemma2", "pfeiffer"): "it reads the stream through the norm behind the MLP and adds before that norm",
    ("gemma3_text", "pfeiffer"): "it reads the stream through the norm behind the MLP and adds before that norm",
    ("phi", "pfeiffer"): "it reads the MLP's output alone",
    ("phi", "parallel"): "it cannot be computed",
    ("gptj", "parallel"): "it reads the stream with attention's output in it",
}


class Bottleneck(nn.Module):
    """f(x), added behind the layer where it stands, or beside one inside it. Owns fp32 tensors; the layer is lent for the call.

    `reads` and `adds` are paths inside the layer: x is the input of the one, and f(x) is added to the output of the other; empty,
    both are the layer's output.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        activation: str,
        scale: float,
        dropout: float = 0.0,
        reads: str = "",
        adds: str = "",
        device: Any = None,
    ):
        super().__init__()
        self.training = False  # `Tuning.train` turns dropout on; whoever only serves an adapter must not have to turn it off
        self.activation, self.scale, self.dropout, self.reads, self.adds = activation, scale, dropout, reads, adds
        self.down = nn.Parameter(torch.zeros(width, channels, dtype=torch.float32, device=device))
        self.down_bias = nn.Parameter(torch.zeros(width, dtype=torch.float32, device=device))
        self.up = nn.Parameter(torch.zeros(channels, width, dtype=torch.float32, device=device))
        self.up_bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32, device=device))

    def added(self, h: Tensor, x: Tensor) -> Tensor:
        """h + f(x): [..., C], in h's dtype."""
        inner = ACTIVATIONS[self.activation](nn.functional.linear(x, self.down.to(x.dtype), self.down_bias.to(x.dtype)))
        y = nn.functional.linear(inner, self.up.to(x.dtype), self.up_bias.to(x.dtype))
        if self.dropout and self.training:
            y = nn.functional.dropout(y, self.dropout)
        return torch.add(h, y.view_as(h), alpha=self.scale)

    def forward(self, layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        """The layer's own output h with f(h) added."""
        return _with_first(slots.own_forward(layer, *inputs, **named), lambda h: self.added(h, h))

    def changed(self, layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        """The output h where f is added, with it; x: the input of what is read."""
        return self.added(h, x if self.reads else h)

    def served_at(self, path: str) -> tuple[str, str]:
        """(path whose output is changed, path whose input is read) of a module at `path`."""
        at, source = ("/".join(filter(None, (path, inner))).replace("/", ".") for inner in (self.adds, self.reads))
        return at, source

    def attach(self, layer: nn.Module) -> None:
        """Stand at the layer, or between the two inside it."""
        if not self.reads:
            _stand(layer, partial(self, layer))
            return
        heard: dict[int, Tensor] = {}
        source, target = layer.get_submodule(self.reads), layer.get_submodule(self.adds)
        if source is not target:
            _stand(source, partial(_hear, source, heard))
        _stand(target, partial(self._beside, target, None if source is target else heard))

    def detach(self, layer: nn.Module) -> None:
        """Leave the layer as its class has it."""
        for name in {self.reads, self.adds}:  # the layer itself is the path ""
            vars(layer.get_submodule(name)).pop("forward", None)

    def _beside(self, target: nn.Module, heard: dict[int, Tensor] | None, *inputs: Any, **named: Any) -> Any:
        x = _first(inputs, named) if heard is None else heard.pop(threading.get_ident())
        return _with_first(slots.own_forward(target, *inputs, **named), lambda h: self.added(h, x))


def _hear(source: nn.Module, heard: dict[int, Tensor], *inputs: Any, **named: Any) -> Any:
    """The layer's own output; its input is remembered until the MLP of the same pass asks for it.

    By thread: a model may answer in one while it learns in another.
    """
    heard[threading.get_ident()] = _first(inputs, named)
    return slots.own_forward(source, *inputs, **named)


def _first(inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return inputs[0] if inputs else next(iter(named.values()))


def _with_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`output` with its first part changed; caches, attention weights and router scores behind it stay."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _stand(layer: nn.Module, forward: Callable[..., Any]) -> None:
    assert "forward" not in vars(layer), f"another adapter stands at this {type(layer).__name__}"
    object.__setattr__(layer, "forward", forward)


def width_of(channels: int, reduction: float) -> int:
    """Channels of the bottleneck, rounded down as AdapterHub has it, at least 1."""
    return max(1, int(channels // reduction))


def learning_rates(settings: Settings) -> Rates:
    """What stands beside the MLP is wide and is multiplied: it takes far smaller steps."""
    return PARALLEL_RATES if settings.variant == "parallel" else LEARNING_RATES


def build(model: Any, settings: Settings, device: Any = None) -> Tuning:
    """The modules, by path, without values. Raises LookupError where it is not known where the model's sublayers are."""
    activation, reduction, scale = _AUTO[settings.variant]
    activation = activation if settings.activation == "auto" else settings.activation
    scale = scale if settings.scale == "auto" else float(settings.scale)
    channels: int = model.config.get_text_config().hidden_size
    width = settings.width or width_of(channels, reduction if settings.reduction == "auto" else float(settings.reduction))
    adapter: dict[str, nn.Module] = {}
    for found in sublayers.find(model):
        for path, reads, adds in places(found, settings.variant):
            adapter[path] = Bottleneck(channels, width, activation, scale, settings.dropout, reads, adds, device)
    parameters = dict(slots.indexed(adapter))
    notes = []
    if why := ELSEWHERE_OTHERWISE.get((sublayers.kind(model), settings.variant)):
        notes.append(f"AdapterHub's {settings.variant} adapter is another one here ({why}): the adapter folder is for Tunesmith alone")
    return Tuning(adapter, parameters, notes=notes, layout="adapterhub")


def places(found: Sublayers, variant: str) -> list[tuple[str, str, str]]:
    """(path in the model, `reads`, `adds`) of a block's modules."""
    if variant == "houlsby":
        return [(f"{found.block}.{found.attention}", "", ""), (f"{found.block}.{found.mlp}", "", "")]
    return [(found.block, found.reads, found.mlp)] if variant == "parallel" else [(found.block, "", "")]


@torch.no_grad()
def init(tuning: Tuning, start: Start, settings: Settings) -> None:
    """D uniform with bound 1/√C, all else zero; each path has its own stream of numbers."""
    for name, parameter in tuning.parameters.items():
        if name.endswith(".down"):
            bound = parameter.shape[1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=stream(start.seed, name)))
        else:
            parameter.zero_()
