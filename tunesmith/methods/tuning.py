"""What a method makes of a model: the modules beside it, and every tensor that is trained."""

from dataclasses import dataclass, field

from torch import nn


@dataclass
class Tuning:
    """`adapter` is empty where the model's own weights are trained (full, freeze); `parameters` never is."""

    adapter: dict[str, nn.Module]  # path in the model -> module
    parameters: dict[str, nn.Parameter]  # name -> trained tensor, in a fixed order
    learning_rate_ratios: dict[str, float] = field(default_factory=dict)  # name -> factor, where it is not 1
    notes: list[str] = field(default_factory=list)  # sentences that the user should read

    @property
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    def train(self, mode: bool = True) -> None:
        """Dropout on or off; the base itself always runs in evaluation mode."""
        for module in self.adapter.values():
            module.train(mode)
