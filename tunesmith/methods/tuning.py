"""What a method makes of a model: the modules beside it, and every tensor that is trained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tunesmith.models.score import Score


@dataclass
class Tuning:
    """`adapter` is empty where the model's own weights are trained (full, freeze); `parameters` never is, but for a bare base."""

    adapter: dict[str, nn.Module]  # path in the model -> module
    parameters: dict[str, nn.Parameter]  # name -> trained tensor, in a fixed order
    learning_rate_ratios: dict[str, float] = field(default_factory=dict)  # name -> factor, where it is not 1
    notes: list[str] = field(default_factory=list)  # sentences that the user should read
    fixed: dict[str, Tensor] = field(default_factory=dict)  # name -> tensor that is not trained, but kept with what is
    layout: str = "lora"  # the line of `layout.LAYOUTS` that writes its folder
    virtual_tokens: int = 0  # placeholders that stand in front of each document
    prefix_tokens: int = 0  # keys and values in front of each document: its positions begin here
    about: dict[str, Any] = field(default_factory=dict)  # what `tunesmith.json` in an adapter folder says
    head: Score | None = None  # what a task predicts with, in place of the model's own head; its tensors are in `parameters`

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def train(self, mode: bool = True) -> None:
        """Dropout on or off; the base itself always runs in evaluation mode."""
        for module in [*self.adapter.values(), *([self.head] if self.head is not None else [])]:
            module.train(mode)


@dataclass(frozen=True)
class Start:
    """What first values can be made of. Nothing stands in the model's places yet."""

    model: Any
    tokenizer: Any
    seed: int
    dense: Callable[[str], Tensor]  # path of a linear layer -> its matrix [out, in] in fp32, as the checkpoint has it (never NF4)
    task: str = ""  # a sentence that names the task
