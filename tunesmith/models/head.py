"""From the last hidden states to logits, as the class itself does it: weight, bias, scale and final soft-cap.

Read from the model once, so that the loss can make logits for the learned positions only. Whether this is what the class
computes is proved at the start of every run (`models/proof.py`); where it is not, the class's own forward is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models import slots


@dataclass(frozen=True)
class Head:
    """logits = softcap · tanh(scale · (h·Wᵀ + b) / softcap)

    Where an adapter stands at the head, `placed` gives what stands in the inner brackets, and depends on `trained`. With `in_place`
    a GPU kernel makes the loss, and the gradient where the logits stood (`models/kernels/cross_entropy.py`).
    """

    weight_VC: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None
    placed: Callable[[Tensor], Tensor] | None = None
    trained: tuple[nn.Parameter, ...] = ()
    in_place: bool = False

    def logits(self, h_NC: Tensor) -> Tensor:
        """[N, C] hidden states to [N, V] logits in the model's dtype."""
        logits_NV = self.placed(h_NC) if self.placed else nn.functional.linear(h_NC, self.weight_VC, self.bias_V)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def head_of(model: Any) -> Head:
    """The head of a causal language model of `transformers`."""
    linear = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite divides
        scale = 1.0 / config.logits_scaling
    elif getattr(config, "logit_scale", None):  # Cohere multiplies
        scale = float(config.logit_scale)
    module = next((m for path, m in slots.placed(model).items() if model.get_submodule(path) is linear), None)
    return Head(
        linear.weight,
        getattr(linear, "bias", None),
        scale,
        getattr(config, "final_logit_softcapping", None),
        None if module is None or hasattr(module, "attach") else linear.forward,
        () if module is None or hasattr(module, "attach") else _trained(module),
    )


def _trained(module: Any) -> tuple[nn.Parameter, ...]:
    """What the logits depend on: a module at the head may score with tensors that belong to another place."""
    return tuple(module.trained() if hasattr(module, "trained") else module.parameters())


def decoder_of(model: Any) -> Any:
    """The part of a causal language model below its head."""
    candidates = [getattr(model, model.base_model_prefix, None), model.get_decoder(), getattr(model, "model", None)]
    return next((part for part in candidates if part is not None and part is not model), model)
