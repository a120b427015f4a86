"""Small networks that make virtual tokens from a table: their tensors are trained together, and only what they make is needed
once training has ended (Liu et al. 2021, arXiv:2103.10385, section 3.2).

    mlp    table [P, C] ──► linear C→H, ReLU, linear H→H, ReLU, linear H→C ──► [P, C]
    lstm   table [P, C] ──► two-layer LSTM over the P places, both ways, C→2H ──► linear 2H→2H, ReLU, linear 2H→C ──► [P, C]

The sizes, and what stands in which order, are those of `peft`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.draws import stream

LAYERS = 2  # of the LSTM


class MLP(nn.Module):
    """Each place by itself."""

    kind = "MLP"
    natural_size = 0.1  # root mean square of what it makes of its first values

    def __init__(self, tokens: int, width: int, hidden: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self) -> Tensor:
        """[P, C]"""
        out_PC: Tensor = self.mlp(self.embedding)
        return out_PC


class LSTM(nn.Module):
    """Each place with its neighbours in sight."""

    kind = "LSTM"
    natural_size = 0.01

    def __init__(self, tokens: int, width: int, hidden: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        self.lstm = nn.LSTM(width, hidden, LAYERS, batch_first=True, bidirectional=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self) -> Tensor:
        """[P, C]"""
        # cuDNN's LSTM has no backward pass in evaluation mode, and sums in no fixed order: a resumed run would not repeat it
        with torch.backends.cudnn.flags(enabled=False):
            out_PC: Tensor = self.mlp(self.lstm(self.embedding[None])[0][0])
        return out_PC


ENCODERS: dict[str, type[MLP] | type[LSTM]] = {"mlp": MLP, "lstm": LSTM}


def build(name: str, tokens: int, width: int, hidden: int, device: Any = None) -> MLP | LSTM:
    """An encoder without values."""
    with torch.device("meta"):  # constructors draw values, from everybody's random numbers
        encoder = ENCODERS[name](tokens, width, hidden)
    return encoder if torch.device(device or "cpu").type == "meta" else encoder.to_empty(device=device or "cpu")


@torch.no_grad()
def begin(encoder: MLP | LSTM, seed: int, path: str, size: float) -> None:
    """Matrices as torch draws them for such layers, and a last one that makes vectors of root mean square `size`.

    Biases are zero: they are the same for all places, and an LSTM's virtual tokens would begin nearly alike. Each tensor has a
    stream of numbers of its own, by `path` and its name.
    """
    for name, parameter in encoder.named_parameters():
        generator = stream(seed, f"{path}.{name}")
        if name == "embedding":
            values = torch.randn(parameter.shape, generator=generator)
        elif "bias" in name:
            values = torch.zeros(parameter.shape)
        else:
            bound = _inputs(encoder, name) ** -0.5
            values = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        parameter.copy_(values)
    last: Any = encoder.mlp[-1]
    last.weight.mul_(size / encoder().square().mean().sqrt())


def _inputs(encoder: MLP | LSTM, name: str) -> int:
    """What torch bounds a draw by: an LSTM's width, a linear layer's inputs."""
    if name.startswith("lstm."):
        return int(encoder.lstm.hidden_size)  # type: ignore[union-attr, arg-type]
    layer: Any = encoder.get_submodule(name.rpartition(".")[0])
    return int(layer.in_features)


def last_layer(encoder: MLP | LSTM) -> list[str]:
    """The names of the tensors whose size is that of what the encoder makes."""
    return [name for name, _ in encoder.named_parameters() if name.startswith(f"mlp.{len(encoder.mlp) - 1}.")]
